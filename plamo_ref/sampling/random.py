"""Randomness as a counter: the number for token t of a request is a function of its seed and t.

Invariant: nothing is remembered between calls, so company, order and preemption cannot matter.
Built in notebooks/04b_logits_to_text.ipynb.
"""

from typing import Any

MASK = (1 << 64) - 1


def uniform(seed: Any, index: Any) -> Any:
    """A number in [0, 1) for token number `index` of a request: splitmix64 used as a counter.
    Of integers a float; of arrays [n] of both, in uint64, an array [n].

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    # Seed and index are mixed one after the other, so that neighbouring seeds do not share numbers.
    return _mix((_mix(seed & MASK) + index + 1) & MASK) / 2.0**64


def _mix(x: Any) -> Any:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return (x ^ (x >> 31)) & (MASK ^ 0x7FF)  # 53 bits: a float64 holds it exactly, below 1


def child_seed(seed: int, index: int) -> int:
    """The seed of completion `index` of a request: the first one keeps its own."""
    mixed: int = seed if index == 0 else _mix(_mix(seed & MASK) ^ index)
    return mixed
