"""The contract of the kernels: every operation of the model, its shapes and its source.

A table has an entry for each. The twins (twin.py of each folder, in plain torch) define what an
entry computes; launchers of Triton kernels and boxes that a compiler does not open take their
places one by one. What one entry computes in a decode step and in a prompt, two kernels, the last
three entries put together: they take a whole batch.

Invariant: two tables compute the same thing; the model cannot tell which one it has. Arithmetic is
in at least float32, and results are rounded once to the dtype of the activations.

Legend: T tokens of the step, R requests, D hidden, H query or Mamba heads, G KV heads, P head size,
N state size, C = H·P channels, K conv width, W window, V vocabulary, S slots. A product may come in
parts [parts, T, out], partial sums that its reader adds.
"""

from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, MambaCache, NarrowCache
from plamo_ref.config import LayerKind
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.ssm.narrow import ReplayCache
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams
from plamo_ref.quantization.weight import Activations, QuantizedTokens, QuantizedWeight


class Kernels(Protocol):
    """The operations."""

    name: str

    def but(self, **entries: Any) -> "Kernels":
        """The same table with other entries."""
        ...

    # --- norms: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019) -----------------

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """x [T, D] / rms(x) · gain [D] → [T, D]."""

    def add_norm(
        self,
        residual: Tensor,
        x: Tensor,
        post_gain: Tensor,
        pre_gain: Tensor,
        eps: float,
        quantize: bool = False,
    ) -> tuple[Tensor, Activations]:
        """residual [T, D] + rms_norm(x), and its own norm: both [T, D]. x [T, D], or parts.

        quantize: the norm as `quantize_tokens` leaves it."""

    # --- products with a weight -------------------------------------------------------------------

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [T, in] · weight [out, in]ᵀ → [T, out]."""

    def linear_parts(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same in parts: [parts, T, out]."""

    def linear_swiglu(self, x: Tensor, weight: Tensor) -> Tensor:
        """silu(gate) · up of the product with weight [2F, in], gate rows first → [T, F].

        Source: Shazeer, "GLU Variants Improve Transformer" (2020)."""

    # The same with a quantized weight: each of its numbers is its scale times a few bits.

    def quantize_tokens(self, x: Tensor, most: Tensor | None = None) -> QuantizedTokens:
        """x [T, in] in e4m3 with a scale for each token. most: max |row| [T] float32, where x is a
        part of the rows."""

    def quantized_linear(self, x: Activations, weight: QuantizedWeight) -> Tensor:
        """x [T, in], or as `quantize_tokens` leaves it, · weight [out, in]ᵀ → [T, out]."""

    def quantized_linear_parts(self, x: Activations, weight: QuantizedWeight) -> Tensor:
        """The same in parts: [parts, T, out]."""

    def quantized_linear_swiglu(
        self, x: Activations, weight: QuantizedWeight, quantize: bool = False
    ) -> Activations:
        """silu(gate) · up of the product with weight [2F, in], gate rows first → [T, F].

        quantize: it as `quantize_tokens` leaves it."""

    def selection(self, bcdt: Tensor, params: SelectionParams) -> tuple[Tensor, Tensor, Tensor]:
        """B, C [T, N] and dt [T, H] from bcdt [T, 2N + rank], or parts of it."""

    # --- attention: Kwon et al., "… PagedAttention" (2023); RoPE: Su et al. (2021) ----------------

    def rope_tables(
        self, positions: Tensor, head_size: int, theta: float, dtype: torch.dtype
    ) -> Tensor:
        """cos and sin of positions [T] → [2, T, 1, P/2]; angles are computed in float64."""

    def qk_norm_rope_write(
        self, qkv: Tensor, q_gain: Tensor, k_gain: Tensor, tables: Tensor,
        keys: Tensor, values: Tensor, slot_mapping: Tensor,
    ) -> Tensor:  # fmt: skip
        """Norm and rotate q and k, store k and v; returns the queries [T, H, P].

        qkv [T, (H + 2G)·P], queries first, then keys, then values, or parts; gains [H, P], [G, P];
        keys, values [blocks, block_size, G, P] are changed in rows slot_mapping [T]."""

    def paged_decode(
        self, q: Tensor, keys: Tensor, values: Tensor,
        block_table: Tensor, first_block: Tensor, seq_lens: Tensor, window: int | None,
    ) -> Tensor:  # fmt: skip
        """One query a request, q [R, H, P] → [R, H, P].

        block_table [R, M] begins with logical block first_block [R]; seq_lens [R] counts the new
        token, which is written; with a window, the last W + 1 keys are seen."""

    def paged_prefill(
        self, q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, first_block: Tensor,
        seq_lens: Tensor, query_start_loc: Tensor, window: int | None,
    ) -> Tensor:  # fmt: skip
        """Several queries a request, those from query_start_loc [R + 1] on: q [T, H, P] → same.

        Keys of earlier chunks are found through the block table, too."""

    # --- Mamba: Dao and Gu, "Transformers are SSMs" (2024) ----------------------------------------

    def conv_update(self, u: Tensor, weight: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
        """silu of the causal convolution, one token a request: u [R, C] or [R, H, P] → [R, C].

        weight [C, K]; cache [S, C, K - 1], the newest inputs, is moved on at slots [R]."""

    def conv_prefill(
        self, u: Tensor, weight: Tensor, cache: Tensor, slots: Tensor,
        query_start_loc: Tensor, has_past: Tensor, photographs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Several tokens a request: u [T, C] or [T, H, P] → [T, C].

        has_past [R] int64: 0 where the slot's content does not count. photographs [F, 3]: a
        request, so many of its new tokens, and the slot, nobody else's, that gets what its own has
        after them."""

    def state_update(
        self, inputs: ScanInputs, params: ScanParams, cache: Tensor, slots: Tensor
    ) -> Tensor:
        """One step of the recurrence: y [R, H, P]; cache [S, H, P, N] is moved on at slots [R]."""

    def scan_prefill(
        self,
        inputs: ScanInputs,
        params: ScanParams,
        cache: Tensor,
        slots: Tensor,
        query_start_loc: Tensor,
        has_past: Tensor,
        photographs: Tensor | None = None,
    ) -> Tensor:
        """Several tokens a request, each continuing from its slot: y [T, H, P].

        cache [S, H, P, N]; the rest as in `conv_prefill`."""

    # The same with states that are rounded in a way of their own: lengths [R] counts their tokens.

    def narrow_state_update(
        self, inputs: ScanInputs, params: ScanParams, cache: NarrowCache,
        slots: Tensor, lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `state_update`: y [R, H, P]."""

    def narrow_scan_prefill(
        self, inputs: ScanInputs, params: ScanParams, cache: NarrowCache, slots: Tensor,
        query_start_loc: Tensor, has_past: Tensor, photographs: Tensor, lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `scan_prefill`: y [T, H, P]."""

    # The same with states that are written every k tokens, and a ring of what came since.

    def replay_state_update(
        self, inputs: ScanInputs, params: ScanParams, cache: ReplayCache,
        slots: Tensor, lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `state_update`: y [R, H, P]; the token gets its place in the ring."""

    def replay_flush(
        self, params: ScanParams, cache: ReplayCache, slots: Tensor,
        query_start_loc: Tensor, has_past: Tensor, photographs: Tensor, lengths: Tensor,
    ) -> None:  # fmt: skip
        """Before a prefill: what the rings of slots [R] hold goes into their states; these rings
        and those of the photographs' slots are empty."""

    # --- tokens -----------------------------------------------------------------------------------

    def argmax(self, logits: Tensor) -> Tensor:
        """The smallest id among the likeliest: logits [B, V] → [B] int64."""

    def sample(self, logits: Tensor, knobs: Tensor, truncated: bool = True) -> Tensor:
        """One id a row: logits [B, V], knobs [B, 5] float64, the columns of KNOBS → [B] int64.

        truncated: False promises that no row has a top_k or top_p."""

    # --- a whole batch: decodes and prompts, each with their own kernels --------------------------

    def attend(
        self, q: Tensor, kind: LayerKind, window: int | None,
        batch: ForwardBatch, cache: AttentionCache,
    ) -> Tensor:  # fmt: skip
        """q [T, H, P] over the requests' keys and values, the new ones included → [T, H, P]."""

    def convolve(self, u: Tensor, weight: Tensor, batch: ForwardBatch, cache: Tensor) -> Tensor:
        """u [T, H, P] → [T, C]; moves the slots' last inputs forward."""

    def scan(
        self, inputs: ScanInputs, params: ScanParams, batch: ForwardBatch, cache: MambaCache
    ) -> Tensor:
        """→ y [T, H, P]; moves the slots' states forward."""


OPERATIONS = tuple(n for n in vars(Kernels) if not n.startswith("_") and n not in ("name", "but"))


class Table(SimpleNamespace):
    """A table: entries by name. The whole-batch ones are made of the others, unless given."""

    def __init__(self, name: str, **entries: Any) -> None:
        super().__init__(name=name, **entries)
        strange = entries.keys() - set(OPERATIONS)
        missing = [operation for operation in OPERATIONS if not hasattr(self, operation)]
        if strange or missing:
            raise KernelError(f"table {name!r}: missing {missing}, unknown {sorted(strange)}")

    def but(self, **entries: Any) -> "Table":
        return Table(**vars(self) | entries)

    def attend(
        self, q: Tensor, kind: LayerKind, window: int | None,
        batch: ForwardBatch, cache: AttentionCache,
    ) -> Tensor:  # fmt: skip
        group, first = batch.groups[kind], batch.num_decodes
        keys, values, lens = cache.keys, cache.values, batch.seq_lens
        table, begin, starts = group.block_table, group.first_block, batch.prefill_start_loc
        return batch.both(
            lambda: self.paged_decode(
                q[:first], keys, values, table[:first], begin[:first], lens[:first], window
            ),
            lambda: self.paged_prefill(
                q[first:], keys, values, table[first:], begin[first:], lens[first:], starts, window
            ),
        )

    def convolve(self, u: Tensor, weight: Tensor, batch: ForwardBatch, cache: Tensor) -> Tensor:
        first, slots = batch.num_decodes, batch.state_slots
        return batch.both(
            lambda: self.conv_update(u[:first], weight, cache, slots[:first]),
            lambda: self.conv_prefill(u[first:], weight, cache, *_states(batch)),
        )

    def scan(
        self, inputs: ScanInputs, params: ScanParams, batch: ForwardBatch, cache: MambaCache
    ) -> Tensor:
        now, then = batch.decodes, slice(batch.num_decodes, None)
        slots, lens, rows = batch.state_slots, batch.seq_lens, inputs.rows
        narrow = cache if isinstance(cache, NarrowCache) else None
        replay = cache if isinstance(cache, ReplayCache) else None

        def decode() -> Tensor:
            if narrow is None:
                return self.state_update(rows(now), params, cache.ssm, slots[now])
            update = self.narrow_state_update if replay is None else self.replay_state_update
            return update(rows(now), params, narrow, slots[now], lens[now])

        def prefill() -> Tensor:
            states = _states(batch)
            if replay is not None:
                self.replay_flush(params, replay, *states, lens[then])
            if narrow is None or (replay is not None and replay.is_plain):
                return self.scan_prefill(rows(then), params, cache.ssm, *states)
            return self.narrow_scan_prefill(rows(then), params, narrow, *states, lens[then])

        return batch.both(decode, prefill)


def _states(batch: ForwardBatch) -> tuple[Tensor, ...]:
    """Where the states of the prompts are, and what becomes of them."""
    slots, has_past = batch.state_slots[batch.prefills], batch.has_past[batch.prefills]
    return slots, batch.prefill_start_loc, has_past, batch.photographs
