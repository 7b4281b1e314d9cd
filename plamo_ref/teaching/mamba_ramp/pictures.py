"""Who touches what, as the reader's own kernels do it: pictures for lesson 11.

Invariant: a picture shows what the interpreter saw. A compiled kernel cannot be watched, and then
there is a sentence instead of a picture.
Used by lesson 11.
"""

import torch

from plamo_ref.teaching.figures import show
from plamo_ref.teaching.mamba_ramp.trials import Launcher, interpreted
from plamo_ref.teaching.watching import touch_map, watch


def who_stores_which_state(slots_step: Launcher) -> None:
    """Two requests of two heads, whose states are in slots 3 and 1 of five."""
    if not interpreted():
        print("A compiled kernel cannot be watched: set TRITON_INTERPRET=1 and restart for this")
        return
    u, B, C, y = torch.ones(2, 2, 4), torch.ones(2, 8), torch.ones(2, 8), torch.ones(2, 2, 4)
    rates, cache, slots = torch.ones(2, 2), torch.zeros(5, 2, 4, 8), torch.tensor([3, 1])
    with watch(others=True, cache=cache) as seen:
        slots_step(u, B, C, rates, rates, cache, slots, y)
    label = "request {0[0]}, head {0[1]}".format
    alt = (
        "request 0 stores slot 3, request 1 slot 1, a program for each head; the rest is untouched"
    )
    show(touch_map(seen, "store", "cache", label=label), alt)
