"""The operations on the cache, as the compiler sees them: boxes with a name that it does not open.

A compiled layer computes everything else itself and calls these in between. Each takes the whole
batch of a step as its vector and, on the CPU, the numbers of its room: their contents say all that
can differ between two steps of equally many tokens, and a compiler looks at shapes, never at
contents.

Invariant: an operation changes only the cache that its `mutates_args` name, in place, and returns a
contiguous tensor of its own. Built in notebooks/12_torch_compile_fusion.ipynb.
"""

from dataclasses import replace
from functools import cache as remember

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, MambaCache, Room
from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.holding import ATTENTION_KINDS
from plamo_ref.kernels.attention.narrow import as_kept
from plamo_ref.kernels.choice import TORCH, triton_table
from plamo_ref.kernels.linear.swiglu import swiglu
from plamo_ref.kernels.rope.twin import qk_norm_rope
from plamo_ref.kernels.ssm.narrow import mamba_cache
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams
from plamo_ref.kernels.table import Kernels, Table
from plamo_ref.quantization.weight import Activations, QuantizedWeight


def opaque(batch: ForwardBatch) -> ForwardBatch:
    """The same batch; its vector and `counts` say everything."""
    # Copies, so that the compiler sees the same kind of tensor in every room.
    groups = {
        kind: replace(group, slot_mapping=group.slot_mapping.clone())
        for kind, group in batch.groups.items()
    }
    room, widths = batch.room, dict(batch.room.widths)
    numbers = [room.decodes, room.prompts, room.tokens, room.photographs]
    numbers += [widths.get(kind, -1) for kind in ATTENTION_KINDS]  # -1: there is no such group
    return replace(batch, groups=groups, counts=torch.tensor(numbers))


def opened(vector: Tensor, counts: Tensor) -> ForwardBatch:
    """The batch again. `counts` is on the CPU, so nobody waits."""
    decodes, prompts, tokens, photographs, *widths = counts.tolist()
    groups = tuple(
        (k, width) for k, width in zip(ATTENTION_KINDS, widths, strict=True) if width >= 0
    )
    return ForwardBatch.over(Room(decodes, prompts, tokens, groups, photographs), vector)


@remember
def _kernels(kernels: str) -> Kernels:
    """The kernels that the operations run: an operation's arguments cannot be a table."""
    return TORCH if kernels == "torch" else triton_table()


# --- attention -----------------------------------------------------------------------------------


@torch.library.custom_op("plamo_ref::write_kv", mutates_args=("keys", "values"))
def write_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """k, v [T, G, P] into rows `slot_mapping` [T] of keys, values [blocks, block_size, G, P]."""
    keys.flatten(0, 1)[slot_mapping] = as_kept(k, keys.dtype)
    values.flatten(0, 1)[slot_mapping] = as_kept(v, values.dtype)


@write_kv.register_fake
def _(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    return None


@torch.library.custom_op("plamo_ref::attend", mutates_args=())
def attend_op(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    vector: Tensor,
    counts: Tensor,
    kind: str,
    window: int | None,
    kernels: str,
) -> Tensor:
    """As `Kernels.attend`: q [T, H, P] → [T, H, P]."""
    group: LayerKind = "full" if kind == "full" else "sliding_window"
    cache = AttentionCache(keys, values)
    return _kernels(kernels).attend(q, group, window, opened(vector, counts), cache).contiguous()


@attend_op.register_fake
def _(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    vector: Tensor,
    counts: Tensor,
    kind: str,
    window: int | None,
    kernels: str,
) -> Tensor:
    return q.new_empty(q.shape)


# --- Mamba ---------------------------------------------------------------------------------------


@torch.library.custom_op("plamo_ref::convolve", mutates_args=("cache",))
def convolve_op(
    u: Tensor, weight: Tensor, cache: Tensor, vector: Tensor, counts: Tensor, kernels: str
) -> Tensor:
    """As `Kernels.convolve`: u [T, H, P] → [T, H·P]."""
    return _kernels(kernels).convolve(u, weight, opened(vector, counts), cache).contiguous()


@convolve_op.register_fake
def _(
    u: Tensor, weight: Tensor, cache: Tensor, vector: Tensor, counts: Tensor, kernels: str
) -> Tensor:
    return u.new_empty((u.shape[0], weight.shape[0]))


RING = ("ring_u", "ring_b", "ring_delta")


@torch.library.custom_op("plamo_ref::scan", mutates_args=("ssm", "scales", *RING))
def scan_op(
    u: Tensor,
    z: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    ssm: Tensor,
    scales: Tensor | None,
    ring_u: Tensor | None,
    ring_b: Tensor | None,
    ring_delta: Tensor | None,
    stochastic: bool,
    vector: Tensor,
    counts: Tensor,
    kernels: str,
) -> Tensor:
    """As `Kernels.scan`: u, z [T, H, P] → [T, H, P]."""
    inputs, params = ScanInputs(u, z, dt, B, C), ScanParams(A, D, dt_bias)
    ring = [part for part in (ring_u, ring_b, ring_delta) if part is not None]
    cache = mamba_cache(ssm, ssm, stochastic, scales, ring)  # no scan looks at `conv`
    return _kernels(kernels).scan(inputs, params, opened(vector, counts), cache).contiguous()


@scan_op.register_fake
def _(
    u: Tensor,
    z: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    ssm: Tensor,
    scales: Tensor | None,
    ring_u: Tensor | None,
    ring_b: Tensor | None,
    ring_delta: Tensor | None,
    stochastic: bool,
    vector: Tensor,
    counts: Tensor,
    kernels: str,
) -> Tensor:
    return z.new_empty(z.shape)


# --- quantized products ---------------------------------------------------------------------------


@torch.library.custom_op("plamo_ref::quantized_linear", mutates_args=())
def quantized_linear_op(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    format: str,
    group: int,
    quantized_activations: bool,
    kernels: str,
) -> Tensor:
    """As `Kernels.quantized_linear` of a `QuantizedWeight` with these fields: x [T, in] → [T, out].

    A box, because the compiler would make the weight plain in each step.
    """
    ops = _kernels(kernels)
    weight = QuantizedWeight(values, scale, format, group)  # type: ignore[arg-type]
    return ops.quantized_linear(ops.quantize_tokens(x) if quantized_activations else x, weight)


@quantized_linear_op.register_fake
def _(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    format: str,
    group: int,
    quantized_activations: bool,
    kernels: str,
) -> Tensor:
    return x.new_empty((x.shape[0], values.shape[0]))


# --- the table -----------------------------------------------------------------------------------


def add_norm(
    residual: Tensor,
    x: Tensor,
    post_gain: Tensor,
    pre_gain: Tensor,
    eps: float,
    quantize: bool = False,
) -> tuple[Tensor, Activations]:
    """As `Kernels.add_norm`, but always plain: the box of the product quantizes."""
    return TORCH.add_norm(residual, x, post_gain, pre_gain, eps)


def compiled_table(kernels: str) -> Table:
    """What a compiled layer runs on: twins, because the compiler can only fuse what it can read,
    and boxes for what touches the cache, which run the kernels named."""

    def qk_norm_rope_write(
        qkv: Tensor,
        q_gain: Tensor,
        k_gain: Tensor,
        tables: Tensor,
        keys: Tensor,
        values: Tensor,
        slot_mapping: Tensor,
    ) -> Tensor:
        q, k, v = qk_norm_rope(qkv, q_gain, k_gain, tables)
        write_kv(k, v, keys, values, slot_mapping)
        return q

    def attend(
        q: Tensor, kind: LayerKind, window: int | None, batch: ForwardBatch, cache: AttentionCache
    ) -> Tensor:
        place = (cache.keys, cache.values, batch.vector, batch.counts)
        return attend_op(q, *place, kind, window, kernels)

    def convolve(u: Tensor, weight: Tensor, batch: ForwardBatch, cache: Tensor) -> Tensor:
        return convolve_op(u, weight, cache, batch.vector, batch.counts, kernels)

    def scan(i: ScanInputs, p: ScanParams, batch: ForwardBatch, cache: MambaCache) -> Tensor:
        return scan_op(
            *(i.u, i.z, i.dt, i.B, i.C, p.A, p.D, p.dt_bias),
            *(cache.ssm, *(getattr(cache, name, None) for name in ("scales", *RING))),
            *(getattr(cache, "stochastic", False), batch.vector, batch.counts, kernels),
        )

    def quantized_linear(x: Tensor, w: QuantizedWeight) -> Tensor:
        how = (w.format, w.group, w.quantized_activations, kernels)
        return quantized_linear_op(x, w.values, w.scale, *how)

    return TORCH.but(
        name="compiled",
        add_norm=add_norm,
        quantize_tokens=lambda x: x,  # the box does it
        quantized_linear=quantized_linear,
        quantized_linear_parts=lambda x, w: quantized_linear(x, w)[None],
        quantized_linear_swiglu=lambda x, w, quantize=False: swiglu(quantized_linear(x, w)),
        qk_norm_rope_write=qk_norm_rope_write,
        attend=attend,
        convolve=convolve,
        scan=scan,
    )
