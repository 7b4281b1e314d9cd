"""Lesson 00: an engine for one.

Invariant: every token is fed once, and the last new one never.
Built in notebooks/00_start_here.ipynb.
"""

from collections.abc import Callable
from typing import Any


def engine_for_one(run: Callable[..., Any], ids: list[int], count: int) -> list[int]:
    """The `count` tokens that follow `ids`, each the likeliest.

    Args:
        run: `run(ids, state)` → an object with `.logits` [len(ids), vocabulary] and `.state`.
    """
    out: list[int] = []
    new, state = ids, None
    for _ in range(count):
        output = run(new, state)
        state = output.state
        new = [int(output.logits[-1].argmax())]
        out += new
    return out
