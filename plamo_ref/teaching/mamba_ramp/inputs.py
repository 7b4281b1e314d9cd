"""What the trials of lesson 11 try: random, of odd sizes, with nothing symmetric in it.

Invariant: slots that belong to nobody, and slots of requests without a past, are full of NaN, so
that who looks there is seen. The same tensors every time, which nobody can guess.
Used by lesson 11.
"""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Draw:
    """Random tensors in float64 that float32 can hold exactly."""

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.source).double()

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self.source)).float().double()

    def slots(self, states: Tensor, used: list[int]) -> tuple[Tensor, Tensor]:
        """[S, …] with NaN wherever nobody is, and the slots as a tensor."""
        strangers = [slot for slot in range(len(states)) if slot not in used]
        states[strangers] = torch.nan
        return states, torch.tensor(used)


def decay() -> list[Tensors]:
    draw = Draw(111)
    dt = 3 * draw.normal(3, 5)
    dt[1, 2] = 117.0  # exp of it is more than float32 has
    return [{"dt": dt, "bias": draw.normal(5), "A": -draw.between(0.1, 2, 5)}]


def conv() -> list[Tensors]:
    draw = Draw(112)
    memory, slots = draw.slots(draw.normal(6, 13, 3), [4, 1])
    return [
        {"u": draw.normal(2, 13), "weight": draw.normal(13, 4)} | _cache(memory, slots, "memory")
    ]


def head() -> list[Tensors]:
    draw = Draw(113)
    return [
        {"state": draw.normal(P, N), "u": draw.normal(P), "B": draw.normal(N), "C": draw.normal(N)}
        | {"delta": draw.between(0.2, 0.9, 1), "fade": draw.between(0.3, 0.8, 1)}
        for P, N in ((13, 7), (5, 11))
    ]


def slots() -> list[Tensors]:
    draw = Draw(114)
    given = _rows(draw, 3, 2, 13, 7) | _rates(draw, 3, 2)
    return [given | _cache(*draw.slots(draw.normal(6, 2, 13, 7), [4, 1, 2]))]


def update() -> list[Tensors]:
    draw = Draw(115)
    given = _rows(draw, 2, 2, 13, 7) | _layer(draw, 2, 2, 13)
    return [given | _cache(*draw.slots(draw.normal(6, 2, 13, 7), [5, 2]))]


def walk() -> list[Tensors]:
    draw = Draw(116)
    return [_rows(draw, 5, 2, 13, 7) | _rates(draw, 5, 2) | {"state": draw.normal(2, 13, 7)}]


def chunk() -> list[Tensors]:
    """A gentle chunk, and one that fades so fast that exp of the reverse overflows."""
    draw, cases = Draw(117), []
    for tokens, A in ((13, -0.4), (6, -90.0)):
        case = {"u": draw.normal(tokens, 13), "delta": draw.between(0.2, 0.9, tokens)}
        case |= {"A": torch.tensor([A]).double(), "B": draw.normal(tokens, 7)}
        cases.append(case | {"C": draw.normal(tokens, 7), "state": draw.normal(13, 7)})
    return cases


def scan() -> list[Tensors]:
    """Three prompts: 37 tokens with a past, 5 without, 18 with one."""
    draw = Draw(118)
    given = _rows(draw, 60, 2, 13, 7) | _layer(draw, 60, 2, 13)
    cache, slots = draw.slots(draw.normal(6, 2, 13, 7), [4, 5, 2])
    cache[5] = torch.nan  # a slot whose request has no past holds whatever was left there
    where = {"starts": torch.tensor([0, 37, 42, 60])}
    where["has_past"] = torch.tensor([1, 0, 1], dtype=torch.uint8)
    return [given | _cache(cache, slots) | where]


def _cache(states: Tensor, slots: Tensor, name: str = "cache") -> Tensors:
    return {name: states, "slots": slots}


def _rows(draw: Draw, T: int, H: int, P: int, N: int) -> Tensors:
    return {"u": draw.normal(T, H, P), "B": draw.normal(T, N), "C": draw.normal(T, N)}


def _rates(draw: Draw, T: int, H: int) -> Tensors:
    return {"delta": draw.between(0.2, 0.9, T, H), "fade": draw.between(0.3, 0.8, T, H)}


def _layer(draw: Draw, T: int, H: int, P: int) -> Tensors:
    """What is left of a layer beside u, B and C."""
    heads = {"A": -draw.between(0.1, 1.5, H), "D": draw.normal(H), "bias": draw.normal(H)}
    return {"z": draw.normal(T, H, P), "dt": draw.normal(T, H)} | heads
