"""Layers as the compiler is shown them: everything but the cache in the open.

Invariant: the code of the layers stays model.py's. Only the places where they touch the cache are
replaced, by the custom operations, and the table of operations has nothing but torch twins.
Built in notebooks/12_torch_compile_fusion.ipynb.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch
from plamo_ref.engine.custom_ops import PackedBatch, attend_op, convolve_op, scan_op, write_kv
from plamo_ref.kernels.qk_norm_rope import qk_norm_rope
from plamo_ref.kernels.ssm import ScanInputs
from plamo_ref.kernels.table import TORCH, Kernels
from plamo_ref.model import Attention, Mamba


def _qk_norm_rope_write(
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    tables: Tensor,
    keys: Tensor,
    values: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """The norm and the rotation for the compiler to fuse, the write for the cache."""
    q, k, v = qk_norm_rope(qkv, q_gain, k_gain, tables)
    write_kv(k, v, keys, values, slot_mapping)
    return q


# Twins, because the compiler can only fuse what it can read.
FUSED = replace(TORCH, name="compiled", qk_norm_rope_write=_qk_norm_rope_write)


@dataclass(frozen=True)
class OpaqueAttention(Attention):
    """Attention whose cache is out of the compiler's sight."""

    kernels: str  # of the operations on the cache

    def _attend(
        self, q: Tensor, batch: ForwardBatch, cache: AttentionCache, ops: Kernels
    ) -> Tensor:
        assert isinstance(batch, PackedBatch)
        place = (cache.keys, cache.values, batch.words, batch.counts)
        return attend_op(q, *place, self.kind, self.window, self.kernels)


@dataclass(frozen=True)
class OpaqueMamba(Mamba):
    """A Mamba mixer whose states are out of the compiler's sight."""

    kernels: str

    def _convolve(self, u: Tensor, batch: ForwardBatch, cache: Tensor, ops: Kernels) -> Tensor:
        assert isinstance(batch, PackedBatch)
        return convolve_op(u, self.conv_weight, cache, batch.words, batch.counts, self.kernels)

    def _scan(self, inputs: ScanInputs, batch: ForwardBatch, cache: Tensor, ops: Kernels) -> Tensor:
        assert isinstance(batch, PackedBatch)
        i, p = inputs, self.scan
        return scan_op(
            *(i.u, i.z, i.dt, i.B, i.C, p.A, p.D, p.dt_bias),
            *(cache, batch.words, batch.counts, self.kernels),
        )
