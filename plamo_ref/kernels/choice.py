"""Which table of kernels there is, and which one this machine can run.

Invariant: what cannot be run here is refused by name, or, where nothing was asked for, replaced by
the torch twins, which run everywhere.
"""

from functools import partial
from importlib.util import find_spec

import torch

from plamo_ref.kernels.attention import twin as paged_attention
from plamo_ref.kernels.conv import twin as conv
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.linear import quantized
from plamo_ref.kernels.linear import twin as linear
from plamo_ref.kernels.names import KernelChoice
from plamo_ref.kernels.norm import twin as norm
from plamo_ref.kernels.rope import twin as qk_norm_rope
from plamo_ref.kernels.sample import twin as sample
from plamo_ref.kernels.ssm import narrow, replay, selection
from plamo_ref.kernels.ssm import twin as ssm
from plamo_ref.kernels.table import Table

TORCH = Table(
    name="torch",
    rms_norm=norm.rms_norm,
    add_norm=norm.add_norm,
    linear=linear.linear,
    linear_parts=linear.linear_parts,
    linear_swiglu=linear.linear_swiglu,
    quantize_tokens=quantized.quantize_tokens,
    quantized_linear=quantized.quantized_linear,
    quantized_linear_parts=quantized.quantized_linear_parts,
    quantized_linear_swiglu=quantized.quantized_linear_swiglu,
    selection=selection.selection,
    rope_tables=qk_norm_rope.rope_tables,
    qk_norm_rope_write=qk_norm_rope.qk_norm_rope_write,
    paged_decode=paged_attention.paged_decode,
    paged_prefill=paged_attention.paged_prefill,
    conv_update=conv.conv_update,
    conv_prefill=conv.conv_prefill,
    state_update=ssm.state_update,
    scan_prefill=ssm.scan_prefill,
    narrow_state_update=narrow.narrow_state_update,
    narrow_scan_prefill=narrow.narrow_scan_prefill,
    replay_state_update=replay.replay_state_update,
    replay_flush=replay.replay_flush,
    argmax=sample.argmax,
    sample=sample.sample,
)


def triton_table(*, pdl: bool = False) -> Table:
    """The Triton kernels. Whether this machine runs them is for `select` to say.

    With `pdl` the kernels of a decode step overlap at their ends: see launch.py.
    """
    # Imported here: Triton exists for Linux only, and takes a second to load.
    from plamo_ref.kernels.attention import triton_decode, triton_prefill
    from plamo_ref.kernels.conv import triton_prefill as triton_conv_prefill
    from plamo_ref.kernels.conv import triton_update as triton_conv
    from plamo_ref.kernels.linear import triton as triton_linear
    from plamo_ref.kernels.linear import triton_dequantize, triton_quantized
    from plamo_ref.kernels.norm import triton as triton_norm
    from plamo_ref.kernels.rope import triton as triton_qk
    from plamo_ref.kernels.sample import triton as triton_sample
    from plamo_ref.kernels.sample import triton_argmax
    from plamo_ref.kernels.ssm import triton_narrow, triton_scan, triton_selection, triton_state
    from plamo_ref.kernels.ssm import triton_replay as triton_ring

    return Table(
        name="triton",
        rms_norm=partial(triton_norm.rms_norm, pdl=pdl),
        add_norm=partial(triton_norm.add_norm, pdl=pdl),
        linear=partial(triton_linear.linear, pdl=pdl),
        linear_parts=partial(triton_linear.linear_parts, pdl=pdl),
        linear_swiglu=partial(triton_linear.linear_swiglu, pdl=pdl),
        quantize_tokens=partial(triton_dequantize.quantize_tokens, pdl=pdl),
        quantized_linear=partial(triton_quantized.quantized_linear, pdl=pdl),
        quantized_linear_parts=partial(triton_quantized.quantized_linear_parts, pdl=pdl),
        quantized_linear_swiglu=partial(triton_quantized.quantized_linear_swiglu, pdl=pdl),
        selection=partial(triton_selection.selection, pdl=pdl),
        rope_tables=partial(triton_qk.rope_tables, pdl=pdl),
        qk_norm_rope_write=partial(triton_qk.qk_norm_rope_write, pdl=pdl),
        paged_decode=partial(triton_decode.paged_decode, pdl=pdl),
        paged_prefill=triton_prefill.paged_prefill,
        conv_update=partial(triton_conv.conv_update, pdl=pdl),
        conv_prefill=triton_conv_prefill.conv_prefill,
        state_update=partial(triton_state.state_update, pdl=pdl),
        scan_prefill=triton_scan.scan_prefill,
        narrow_state_update=partial(triton_narrow.narrow_state_update, pdl=pdl),
        narrow_scan_prefill=triton_narrow.narrow_scan_prefill,
        replay_state_update=partial(triton_ring.replay_state_update, pdl=pdl),
        replay_flush=triton_ring.replay_flush,
        argmax=partial(triton_argmax.argmax, pdl=pdl),
        sample=triton_sample.sample,
    )


def select(
    choice: KernelChoice,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    pdl: bool = False,
) -> Table:
    """The table for `choice`; "auto" takes the fastest that can run.

    "cache" is half and half: Triton for what touches the cache, twins for the rest. It is what
    torch.compile starts from, and so what its gain is measured against.

    Args:
        device: where the tensors will be; None: a GPU if there is one.
        dtype: of weights and activations. Triton kernels compute in float32, so float64 is for
            the twins.
        pdl: let the kernels of a decode step overlap at their ends; see `can_overlap`.

    Raises:
        KernelError: the choice cannot be run here.
    """
    if choice not in ("auto", "torch", "triton", "cache"):
        raise KernelError(f'kernels={choice!r}: choose "auto", "torch", "triton" or "cache"')
    if choice == "torch":
        return TORCH
    obstacle = _obstacle(device, dtype)
    if obstacle is None:
        own = triton_table(pdl=pdl)
        return own if choice != "cache" else _only_on_the_cache(own)
    if choice == "auto":
        return TORCH
    raise KernelError(f'kernels="{choice}": {obstacle}; use "auto" or "torch"')


def can_overlap(device: torch.device) -> bool:
    """Whether kernels there can overlap at their ends: programmatic launches came with Hopper."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _only_on_the_cache(own: Table) -> Table:
    names = ["paged_decode", "paged_prefill", "conv_update", "conv_prefill", "argmax", "sample"]
    names += ["state_update", "scan_prefill", "narrow_state_update", "narrow_scan_prefill"]
    names += ["replay_state_update", "replay_flush"]
    return TORCH.but(name="cache", **{name: getattr(own, name) for name in names})


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
