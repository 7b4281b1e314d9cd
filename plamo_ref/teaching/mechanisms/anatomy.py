"""Lesson 01: the bytes that a request keeps.

Invariant: states once, the last W tokens in a window, every token in a full layer.
Built in notebooks/01_plamo2_anatomy.ipynb.
"""

from plamo_ref.config import Plamo2Config


def kv_bytes(c: Plamo2Config, kind: str, itemsize: int = 2) -> int:
    """Bytes that one token leaves in all layers of a kind, "full" or "sliding_window"."""
    width = c.num_key_value_heads * c.hidden_size_per_head
    return 2 * width * itemsize * c.layer_kinds.count(kind)


def request_bytes(c: Plamo2Config, length: int, itemsize: int = 2) -> int:
    """Bytes to keep of a request of `length` tokens, so that it can go on."""
    in_window = min(length, c.attention_window_size)
    growing = length * kv_bytes(c, "full", itemsize)
    sliding = in_window * kv_bytes(c, "sliding_window", itemsize)
    return c.state_bytes(itemsize) + sliding + growing
