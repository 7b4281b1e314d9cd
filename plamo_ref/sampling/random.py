"""Randomness as a counter: the number for token t of a request is a function of its seed and t.

Invariant: nothing is remembered between calls, so company, order and preemption cannot matter.
Built in notebooks/04_reference_generation.ipynb.
"""


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for token number `index` of a request: splitmix64 used as a counter.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    mask = (1 << 64) - 1
    # Seed and index are mixed one after the other, so that neighbouring seeds do not share numbers.
    return _mix((_mix(seed & mask) + index + 1) & mask) / 2**64


def _mix(x: int) -> int:
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & ~0x7FF  # 53 bits: a float64 holds it exactly, below 1


def child_seed(seed: int, index: int) -> int:
    """The seed of completion `index` of a request: the first one keeps its own."""
    return seed if index == 0 else _mix(_mix(seed & ((1 << 64) - 1)) ^ index)
