"""The table of operations that the model is given: torch twins, or kernels that replace them.

Invariant: two tables compute the same thing; the model cannot tell which one it has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from plamo_ref.kernels import conv, mlp, norm, paged_attention, qk_norm_rope, sample, ssm
from plamo_ref.kernels.errors import KernelError

KernelChoice = Literal["auto", "torch", "triton"]


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
    sample: Callable[..., Tensor]


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
    sample=sample.sample,
)


def triton_table() -> Kernels:
    """The Triton kernels. Whether this machine runs them is for `select` to say."""
    # Imported here: Triton exists for Linux only, and takes a second to load.
    from plamo_ref.kernels import (
        triton_conv,
        triton_decode,
        triton_mlp,
        triton_norm,
        triton_prefill,
        triton_qk,
        triton_scan,
        triton_state,
    )

    return Kernels(
        name="triton",
        rms_norm=triton_norm.rms_norm,
        add_norm=triton_norm.add_norm,
        swiglu=triton_mlp.swiglu,
        qk_norm_rope_write=triton_qk.qk_norm_rope_write,
        paged_decode=triton_decode.paged_decode,
        paged_prefill=triton_prefill.paged_prefill,
        conv_update=triton_conv.conv_update,
        conv_prefill=triton_conv.conv_prefill,
        state_update=triton_state.state_update,
        scan_prefill=triton_scan.scan_prefill,
        sample=sample.sample,
    )


def select(
    choice: KernelChoice,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Kernels:
    """The table for `choice`; "auto" takes the fastest that can run.

    Args:
        device: where the tensors will be; None: a GPU if there is one.
        dtype: of weights and activations. Triton kernels compute in float32, so float64 is for
            the twins.

    Raises:
        KernelError: the choice cannot be run here.
    """
    if choice not in ("auto", "torch", "triton"):
        raise KernelError(f'kernels={choice!r}: choose "auto", "torch" or "triton"')
    if choice == "torch":
        return TORCH
    obstacle = _obstacle(device, dtype)
    if obstacle is None:
        return triton_table()
    if choice == "auto":
        return TORCH
    raise KernelError(f'kernels="triton": {obstacle}; use "auto" or "torch"')


def _obstacle(device: torch.device | None, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot be used; None if they can."""
    if dtype == torch.float64:
        return "Triton kernels compute in float32, and float64 was asked for"
    if find_spec("triton") is None:
        return "Triton is not installed (it exists for Linux)"
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        return f"Triton kernels need a CUDA GPU, and the device is {str(device)!r}"
    return None
