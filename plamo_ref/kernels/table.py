"""The table of operations that the model is given: torch twins, or kernels that replace them.

Invariant: two tables compute the same thing; the model cannot tell which one it has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from plamo_ref.errors import PlamoRefError
from plamo_ref.kernels import conv, mlp, norm, paged_attention, qk_norm_rope, ssm

KernelChoice = Literal["auto", "torch", "triton"]


class KernelError(PlamoRefError, ValueError):
    """Kernels that this machine or this version cannot run."""


@dataclass(frozen=True)
class Kernels:
    """One entry for each operation; signatures are those of the twins."""

    name: str
    rms_norm: Callable[..., Tensor]
    add_norm: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[..., Tensor]
    qk_norm_rope_write: Callable[..., Tensor]
    paged_decode: Callable[..., Tensor]
    paged_prefill: Callable[..., Tensor]
    conv_update: Callable[..., Tensor]
    conv_prefill: Callable[..., Tensor]
    state_update: Callable[..., Tensor]
    scan_prefill: Callable[..., Tensor]


TORCH = Kernels(
    name="torch",
    rms_norm=norm.rms_norm,
    add_norm=norm.add_norm,
    swiglu=mlp.swiglu,
    qk_norm_rope_write=qk_norm_rope.qk_norm_rope_write,
    paged_decode=paged_attention.paged_decode,
    paged_prefill=paged_attention.paged_prefill,
    conv_update=conv.conv_update,
    conv_prefill=conv.conv_prefill,
    state_update=ssm.state_update,
    scan_prefill=ssm.scan_prefill,
)


def select(choice: KernelChoice) -> Kernels:
    """The table for `choice`; "auto" takes the fastest that this machine can run.

    Raises:
        KernelError: the choice cannot be run here.
    """
    if choice in ("auto", "torch"):
        return TORCH
    if choice == "triton":
        raise KernelError('kernels="triton": this version has the torch kernels only; use "auto"')
    raise KernelError(f'kernels={choice!r}: choose "auto", "torch" or "triton"')
