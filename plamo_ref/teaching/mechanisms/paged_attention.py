"""Lesson 05: read through a table.

Invariant: row i of what is gathered is the row of token i, counted from the table's first block.
Built in notebooks/05_paged_attention.ipynb.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def gather(memory: Array, table: Array) -> Array:
    """memory [blocks, block_size, G, P], table [..., M] → [..., M · block_size, G, P]."""
    blocks = memory[table]  # [..., M, block_size, G, P]
    return blocks.reshape(*table.shape[:-1], -1, *memory.shape[2:])
