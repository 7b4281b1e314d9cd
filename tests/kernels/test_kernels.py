"""The plain torch twin of every kernel, against definitions written out in loops.

Invariant tested: each operation is its formula at odd shapes and at the edges of the window, and
nothing that is not a request's own, NaN above all, reaches its result.
"""

import inspect
import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.kernels.attention.twin import paged_decode, paged_prefill
from plamo_ref.kernels.choice import TORCH, select, triton_table
from plamo_ref.kernels.conv.twin import conv_prefill, conv_update
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.linear.swiglu import swiglu
from plamo_ref.kernels.norm.twin import add_norm, rms_norm
from plamo_ref.kernels.rope.twin import qk_norm_rope_write, rope_tables
from plamo_ref.kernels.ssm.selection import SelectionParams, selection
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams, scan_prefill, state_update
from plamo_ref.kernels.table import OPERATIONS, Kernels, Table
from plamo_ref.reference.functions import rms_norm as reference_norm
from plamo_ref.reference.functions import rope
from plamo_ref.reference.scan import scan_steps

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# --- norms, SwiGLU, RoPE -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 33)])
def test_rms_norm_is_its_formula(shape):
    x, gain = noise(*shape), noise(shape[-1], seed=1)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    close(rms_norm(x, gain, 1e-6), expected)


def test_rms_norm_takes_its_statistics_in_float32():
    """In bfloat16 the square of 300 and a sum of 512 of them would lose half their digits."""
    x = (noise(4, 512) * 300).bfloat16()
    gain = torch.ones(512, dtype=torch.bfloat16)
    got = rms_norm(x, gain, 1e-6)
    assert got.dtype == torch.bfloat16
    expected = rms_norm(x.double(), gain.double(), 1e-6).bfloat16()
    assert torch.equal(got, expected)


def test_add_norm_is_three_steps_in_one():
    r, x, post, pre = noise(3, 9), noise(3, 9, seed=1), noise(9, seed=2), noise(9, seed=3)
    residual, normed = add_norm(r, x, post, pre, 1e-5)
    close(residual, r + reference_norm(x, post, 1e-5))
    close(normed, reference_norm(residual, pre, 1e-5))


def test_swiglu_has_the_gate_first():
    x = noise(3, 10)
    close(swiglu(x), x[:, :5] * torch.sigmoid(x[:, :5]) * x[:, 5:])


def test_selection_is_three_norms_and_a_product():
    """With an epsilon that shows: each norm uses the layer's."""
    state, rank, heads, eps = 3, 7, 2, 0.3
    bcdt, weight = noise(5, 2 * state + rank), noise(heads, rank, seed=4)
    gains = [noise(size, seed=seed) for seed, size in enumerate((state, state, rank), start=1)]
    normed = [
        part / (part.square().mean(-1, keepdim=True) + eps).sqrt() * gain
        for part, gain in zip(bcdt.split((state, state, rank), dim=-1), gains, strict=True)
    ]
    B, C, dt = selection(bcdt, SelectionParams(*gains, weight, eps))
    close(B, normed[0])
    close(C, normed[1])
    close(dt, normed[2] @ weight.T)


def test_qk_norm_rope_write_touches_only_its_rows():
    tokens, heads, kv_heads, size = 5, 6, 2, 8
    qkv = noise(tokens, (heads + 2 * kv_heads) * size)
    q_gain, k_gain = noise(heads, size, seed=1), noise(kv_heads, size, seed=2)
    positions = torch.tensor([0, 1, 17, 3, 10_000_000])
    keys = torch.full((4, 3, kv_heads, size), math.nan, dtype=F64)
    values = keys.clone()
    rows = torch.tensor([4, 11, 3, 7, 5])
    tables = rope_tables(positions, size, 1e6, F64)
    q = qk_norm_rope_write(qkv, q_gain, k_gain, tables, keys, values, rows)

    parts = qkv.view(tokens, -1, size)
    close(q, rope(reference_norm(parts[:, :heads], q_gain, 1e-6), positions, 1e6))
    k = reference_norm(parts[:, heads : heads + kv_heads], k_gain, 1e-6)
    close(keys.flatten(0, 1)[rows], rope(k, positions, 1e6))
    close(values.flatten(0, 1)[rows], parts[:, heads + kv_heads :])
    untouched = [row for row in range(12) if row not in rows.tolist()]
    assert keys.flatten(0, 1)[untouched].isnan().all()
    assert values.flatten(0, 1)[untouched].isnan().all()


# --- attention over blocks -----------------------------------------------------------------------


class Paged:
    """Keys and values of several requests in blocks at random places; all else is NaN."""

    def __init__(
        self, lengths: list[int], block_size: int, firsts: list[int], heads: int, kv_heads: int
    ) -> None:
        size, generator = 4, torch.Generator().manual_seed(sum(lengths))
        spans = [range(f, math.ceil(n / block_size)) for n, f in zip(lengths, firsts, strict=True)]
        total = sum(map(len, spans))
        places = (torch.randperm(total, generator=generator) + 1).tolist()
        shape = (total + 1, block_size, kv_heads, size)
        self.keys = torch.full(shape, math.nan, dtype=F64)
        self.values = self.keys.clone()
        self.table = torch.zeros(len(lengths), max(map(len, spans)), dtype=torch.long)
        self.k = [noise(n, kv_heads, size, seed=i) for i, n in enumerate(lengths)]
        self.v = [noise(n, kv_heads, size, seed=i + 50) for i, n in enumerate(lengths)]
        for i, span in enumerate(spans):
            for column, logical in enumerate(span):
                block = places.pop()
                self.table[i, column] = block
                tokens = slice(logical * block_size, min((logical + 1) * block_size, lengths[i]))
                count = tokens.stop - tokens.start
                self.keys[block, :count], self.values[block, :count] = (
                    self.k[i][tokens],
                    self.v[i][tokens],
                )
        self.firsts, self.lengths = torch.tensor(firsts), torch.tensor(lengths)
        self.heads, self.group = heads, heads // kv_heads

    def attend(self, q: Tensor, request: int, position: int, window: int | None) -> Tensor:
        """One query [H, P] by the definition."""
        first = 0 if window is None else max(0, position - window)
        out = []
        for head in range(self.heads):
            keys = self.k[request][first : position + 1, head // self.group]
            values = self.v[request][first : position + 1, head // self.group]
            weights = torch.softmax(keys @ q[head] / math.sqrt(q.shape[-1]), 0)
            out.append(weights @ values)
        return torch.stack(out)


def first_block(position: int, window: int | None, block_size: int) -> int:
    return 0 if window is None else max(0, position - window) // block_size


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    block_size=st.integers(1, 6),
    window=st.none() | st.integers(1, 12),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
)
def test_paged_decode_is_attention_over_what_the_window_shows(lengths, block_size, window, heads):
    firsts = [first_block(n - 1, window, block_size) for n in lengths]
    paged = Paged(lengths, block_size, firsts, *heads)
    q = noise(len(lengths), heads[0], 4, seed=9)
    got = paged_decode(
        q, paged.keys, paged.values, paged.table, paged.firsts, paged.lengths, window
    )
    expected = [paged.attend(q[i], i, n - 1, window) for i, n in enumerate(lengths)]
    close(got, torch.stack(expected))


@settings(max_examples=60)
@given(
    shares=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 15)), min_size=1, max_size=4),
    block_size=st.integers(1, 6),
    window=st.none() | st.integers(1, 12),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
)
def test_paged_prefill_is_attention_of_each_query(shares, block_size, window, heads):
    """Shares: tokens computed before, tokens in this step."""
    lengths = [past + new for past, new in shares]
    firsts = [first_block(past, window, block_size) for past, _ in shares]
    paged = Paged(lengths, block_size, firsts, *heads)
    starts = torch.tensor([0] + [new for _, new in shares]).cumsum(0)
    q = noise(int(starts[-1]), heads[0], 4, seed=9)
    got = paged_prefill(
        q, paged.keys, paged.values, paged.table, paged.firsts, paged.lengths, starts, window
    )
    expected = [
        paged.attend(q[int(starts[i]) + j], i, past + j, window)
        for i, (past, new) in enumerate(shares)
        for j in range(new)
    ]
    close(got, torch.stack(expected))


@pytest.mark.parametrize("extra", [-1, 0, 1, 2])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_window_edge_sees_w_plus_one_keys(extra, block_size):
    """With W-1, W, W+1, W+2 tokens: all, all, all W+1, and the first one not any more."""
    window = 6
    length = window + extra
    paged = Paged([length], block_size, [0], 1, 1)  # nothing dropped: only the mask decides
    q = noise(1, 1, 4, seed=3)
    arguments = (paged.keys, paged.values, paged.table, paged.firsts, paged.lengths)
    decoded = paged_decode(q, *arguments, window)
    prefilled = paged_prefill(q, *arguments, torch.tensor([0, 1]), window)
    visible = min(length, window + 1)
    k, v = paged.k[0][length - visible :, 0], paged.v[0][length - visible :, 0]
    expected = torch.softmax(k @ q[0, 0] / 2, 0) @ v
    close(decoded[0, 0], expected)
    close(prefilled[0, 0], expected)


# --- convolution ---------------------------------------------------------------------------------


def convolve(u: Tensor, weight: Tensor, history: Tensor) -> Tensor:
    """u [Q, C], history [C, K-1] by the definition."""
    taps = weight.shape[1]
    everything = torch.cat((history.T, u))  # [K-1+Q, C]
    rows = [(everything[t : t + taps] * weight.T).sum(0) for t in range(len(u))]
    y = torch.stack(rows)
    return y * torch.sigmoid(y)


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    taps=st.integers(2, 5),
    data=st.data(),
)
def test_conv_prefill_continues_or_starts_from_zeros(counts, taps, data):
    requests, channels = len(counts), 3
    past = torch.tensor([data.draw(st.booleans()) for _ in counts])
    slots = torch.tensor(data.draw(st.permutations(range(1, requests + 2)))[:requests])
    cache = torch.full((requests + 3, channels, taps - 1), math.nan, dtype=F64)
    cache[slots[past]] = noise(int(past.sum()), channels, taps - 1, seed=4)
    before = cache.clone()
    starts = torch.tensor([0, *counts]).cumsum(0)
    u, weight = noise(int(starts[-1]), channels, seed=5), noise(channels, taps, seed=6)
    got = conv_prefill(u, weight, cache, slots, starts, past)
    for i, slot in enumerate(slots.tolist()):
        mine = slice(int(starts[i]), int(starts[i + 1]))
        history = before[slot] if past[i] else torch.zeros(channels, taps - 1, dtype=F64)
        close(got[mine], convolve(u[mine], weight, history))
        close(cache[slot], torch.cat((history, u[mine].T), dim=1)[:, -(taps - 1) :])
    others = [slot for slot in range(requests + 3) if slot not in slots.tolist()]
    assert cache[others].isnan().all(), "only the given slots are written"


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    chunk=st.sampled_from([1, 3, 64]),
    data=st.data(),
)
def test_a_photograph_is_what_a_prompt_that_ends_there_leaves(counts, chunk, data):
    """Convolution and scan: the first, the last, or any token; several of a request; padding."""
    requests = len(counts)
    moments = [(row, data.draw(st.integers(1, n))) for row, n in enumerate(counts) for _ in "ab"]
    moments = sorted(set(moments))
    past = torch.tensor([data.draw(st.booleans()) for _ in counts])
    slots, starts = torch.arange(1, requests + 1), torch.tensor([0, *counts]).cumsum(0)
    rows = [[*moment, requests + 1 + i] for i, moment in enumerate(moments)]
    photographs = torch.tensor([*rows, [0, 0, 0]])
    u, weight, inputs = noise(sum(counts), 3, seed=5), noise(3, 4, seed=6), scan_inputs(sum(counts))
    size = requests + len(rows) + 2

    def convolved(cache, u, *where):
        return conv_prefill(u, weight, cache, *where)

    def scanned(cache, rows, *where):
        return scan_prefill(inputs.rows(rows), PARAMS, cache, *where, chunk=chunk)

    for run, tokens, shape in ((convolved, u, (3, 3)), (scanned, None, (3, 2, 5))):
        before = noise(size, *shape, seed=7)
        plain, cache = before.clone(), before.clone()
        whole = slice(0, sum(counts))
        y = run(cache, whole if tokens is None else tokens, slots, starts, past, photographs)
        expected = run(plain, whole if tokens is None else tokens, slots, starts, past)
        close(y, expected)
        close(cache[slots], plain[slots])
        assert torch.equal(cache[-1], before[-1]), "nothing else is written"
        for row, count, slot in rows:
            mine = slice(int(starts[row]), int(starts[row]) + count)
            alone, one = before.clone(), slots[row : row + 1]
            part = mine if tokens is None else tokens[mine]
            run(alone, part, one, torch.tensor([0, count]), past[row : row + 1])
            close(cache[slot], alone[one[0]])


def test_conv_update_is_a_prefill_of_one_token():
    cache, twin = noise(6, 5, 3), noise(6, 5, 3)
    u, weight, slots = noise(3, 5, seed=1), noise(5, 4, seed=2), torch.tensor([4, 1, 2])
    got = conv_update(u, weight, cache, slots)
    starts, past = torch.arange(4), torch.ones(3, dtype=torch.bool)
    close(got, conv_prefill(u, weight, twin, slots, starts, past))
    close(cache, twin)
    close(cache[[0, 3, 5]], noise(6, 5, 3)[[0, 3, 5]])


# --- the scan -------------------------------------------------------------------------------------


def scan_inputs(tokens: int, heads: int = 3, size: int = 2, state: int = 5) -> ScanInputs:
    return ScanInputs(
        u=noise(tokens, heads, size, seed=1),
        z=noise(tokens, heads, size, seed=2),
        dt=noise(tokens, heads, seed=3),
        B=noise(tokens, state, seed=4),
        C=noise(tokens, state, seed=5),
    )


PARAMS = ScanParams(A=-noise(3, seed=6).exp(), D=noise(3, seed=7), dt_bias=noise(3, seed=8))


def scanned(inputs: ScanInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """One request, step by step, gate and D included."""
    dt = torch.log1p(torch.exp(inputs.dt + PARAMS.dt_bias))
    y, state = scan_steps(inputs.u, dt, PARAMS.A, inputs.B, inputs.C, state)
    y = y + PARAMS.D[:, None] * inputs.u
    return y * inputs.z * torch.sigmoid(inputs.z), state


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 13), min_size=1, max_size=4),
    chunk=st.sampled_from([1, 2, 3, 5, 64]),
    data=st.data(),
)
def test_scan_prefill_is_the_recurrence_whatever_the_chunk(counts, chunk, data):
    requests = len(counts)
    past = torch.tensor([data.draw(st.booleans()) for _ in counts])
    slots = torch.tensor(data.draw(st.permutations(range(1, requests + 2)))[:requests])
    cache = torch.full((requests + 3, 3, 2, 5), math.nan, dtype=F64)
    cache[slots[past]] = noise(int(past.sum()), 3, 2, 5, seed=9)
    before = cache.clone()
    starts = torch.tensor([0, *counts]).cumsum(0)
    inputs = scan_inputs(int(starts[-1]))
    got = scan_prefill(inputs, PARAMS, cache, slots, starts, past, chunk=chunk)
    for i, slot in enumerate(slots.tolist()):
        mine = slice(int(starts[i]), int(starts[i + 1]))
        state = before[slot] if past[i] else torch.zeros(3, 2, 5, dtype=F64)
        expected, last = scanned(inputs.rows(mine), state)
        close(got[mine], expected)
        close(cache[slot], last)
    others = [slot for slot in range(requests + 3) if slot not in slots.tolist()]
    assert cache[others].isnan().all(), "only the given slots are written"


def test_state_update_is_one_step_of_the_recurrence():
    cache, slots, inputs = noise(5, 3, 2, 5), torch.tensor([3, 1]), scan_inputs(2)
    before = cache.clone()
    got = state_update(inputs, PARAMS, cache, slots)
    for i, slot in enumerate(slots.tolist()):
        expected, last = scanned(inputs.rows(slice(i, i + 1)), before[slot])
        close(got[i : i + 1], expected)
        close(cache[slot], last)
    assert torch.equal(cache[[0, 2, 4]], before[[0, 2, 4]])


def test_extreme_steps_neither_overflow_nor_clamp():
    """Δ of 1e-9 and of 500: differences of decays are masked before they are exponentiated."""
    inputs = scan_inputs(40)
    inputs.dt[:20], inputs.dt[20:] = -20.0, 500.0
    cache, starts = torch.zeros(2, 3, 2, 5, dtype=F64), torch.tensor([0, 40])
    fresh = torch.tensor([False])
    got = scan_prefill(inputs, PARAMS, cache, torch.tensor([1]), starts, fresh)
    expected, last = scanned(inputs, torch.zeros(3, 2, 5, dtype=F64))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cache[1], last, rtol=1e-9, atol=1e-9)
    assert got.isfinite().all()


def test_bfloat16_slots_are_rounded_only_when_they_are_stored():
    inputs = scan_inputs(1)
    exact, rounded = torch.zeros(2, 3, 2, 5, dtype=F64), torch.zeros(2, 3, 2, 5).bfloat16()
    slots = torch.tensor([1])
    close(
        state_update(inputs, PARAMS, exact, slots),
        state_update(inputs, PARAMS, rounded, slots),
    )
    assert torch.equal(exact.bfloat16(), rounded)


# --- the table ------------------------------------------------------------------------------------


def test_torch_kernels_can_be_chosen_and_nonsense_cannot():
    assert select("torch") is TORCH
    with pytest.raises(KernelError, match='choose "auto", "torch", "triton" or "cache"'):
        select("cuda")


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [TORCH, *([triton_table()] if find_spec("triton") else [])])
def test_every_entry_has_the_parameters_of_the_contract(table):
    """What a table adds (a plan, say) has a default, so the model can leave it out."""
    for name in OPERATIONS:
        wanted = list(inspect.signature(getattr(Kernels, name)).parameters)[1:]
        entry = inspect.signature(getattr(table, name)).parameters
        assert list(entry)[: len(wanted)] == wanted, name
        more = [entry[key] for key in list(entry)[len(wanted) :]]
        assert all(parameter.default is not parameter.empty for parameter in more), name


def test_every_operation_of_the_contract_says_what_it_computes():
    for name in OPERATIONS:
        assert "→" in getattr(Kernels, name).__doc__ or "[" in getattr(Kernels, name).__doc__, name


def test_a_table_has_every_operation_and_no_other():
    entries = {n: v for n, v in vars(TORCH).items() if n not in ("name", "linear")}
    with pytest.raises(KernelError, match=r"missing \['linear'\]"):
        Table("short", **entries)
    with pytest.raises(KernelError, match=r"unknown \['linera'\]"):
        TORCH.but(linera=TORCH.linear)


def test_whole_batch_operations_are_made_of_the_tables_own_parts():
    calls = []
    mine = TORCH.but(conv_update=lambda u, *_: calls.append("mine") or u.flatten(1))
    batch = ForwardBatch.empty(Room(2, 0, 0, ()), torch.device("cpu"))
    mine.convolve(torch.zeros(2, 3, 4), torch.zeros(12, 4), batch, torch.zeros(2, 12, 3))
    assert calls == ["mine"]
