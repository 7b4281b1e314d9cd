"""Every Triton kernel against its torch twin in float64, run by Triton's interpreter.

Invariant tested: at odd shapes and at the edges of window, chunk and block, each kernel is its
formula within float32; it reads nothing that is not a request's own and writes nothing else. What
must not be read or written is NaN in every case, and NaN must be exactly where the twin leaves it.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from plamo_ref.bench.kernels.cases import (
    SMALL,
    Case,
    Maker,
    conv_cases,
    paged_case,
    scan_cases,
    selection_cases,
    small_cases,
)
from plamo_ref.bench.kernels.check import LIMITS, check, compare, copied, main, results
from plamo_ref.bench.kernels.replay_cases import replay_cases
from plamo_ref.bench.kernels.state_cases import scan_inputs
from plamo_ref.kernels.choice import TORCH, triton_table
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config
from plamo_ref.kernels.linear.triton_dequantize import dequantize
from plamo_ref.kernels.linear.triton_quantized import MANY, MANY_FOR_WORDS
from plamo_ref.kernels.linear.triton_swiglu import swiglu_parts, swiglu_quantized
from plamo_ref.kernels.linear.triton_tiles import TILES, swiglu_in_tiles, tiles_for
from plamo_ref.kernels.ssm.triton_plan import Plan, plan_scan
from plamo_ref.quantization import quantize as quantize_module
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import QuantizedWeight

CPU, F32 = torch.device("cpu"), torch.float32
CASES = {case.name: case for case in small_cases(CPU, F32)}
KERNELS = triton_table()


def agrees(case: Case) -> None:
    ((_, ratio, most, _, good),) = check([case], F32, KERNELS)
    assert good, f"{case.name}: ratio {ratio:.1e}, maximum {most:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_kernel_is_its_twin(name):
    agrees(CASES[name])


def test_copies_for_a_run_keep_strides():
    inputs = CASES["a: state_update 2, float32"].arguments[0]
    assert not inputs.z.is_contiguous()
    for dtype in (None, torch.float64):
        assert copied(inputs, dtype).z.stride() == inputs.z.stride()
        assert torch.equal(copied(inputs, dtype).z, inputs.z.to(dtype or F32))


def test_every_operation_is_covered():
    assert {case.operation for case in CASES.values()} == set(vars(TORCH)) - {"name"}


def test_selection_of_several_tiles_of_heads():
    """17 heads are two tiles of 16, and 70 tokens have tiles of 32; 5 parts are fewer than 8."""
    make, shape = Maker(CPU, F32), replace(SMALL[0], mamba_heads=17)
    for tokens, heads in ((2, 17), (34, 35)):
        case, *_ = selection_cases(make, replace(shape, mamba_heads=heads), tokens)
        params = case.arguments[1]
        wide = params.dt_gain.shape[0] + 2 * shape.state
        agrees(replace(case, arguments=(make.parts(5, tokens, wide), params)))


# --- SwiGLU in tiles ------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 65, 128])
def test_swiglu_in_tiles_is_its_twin(tokens, monkeypatch):
    """Rows of gate and of up end within a block, and columns within an iteration; rows are further
    apart than they are long; a program has several tiles, the last one fewer."""
    monkeypatch.setattr("plamo_ref.kernels.linear.triton_tiles.multiprocessors", lambda device: 2)
    make = Maker(CPU, F32, seed=tokens)
    x, weight = make.noise(tokens, 88)[:, :72], make.noise(2 * 70, 80)[:, :72] / 9
    agrees(Case(f"{tokens}", "linear_swiglu", (x, weight)))
    in_tiles = KERNELS.but(linear_swiglu=partial(swiglu_in_tiles, config=TILES[0]))
    ((*_, good),) = check([Case("tiles", "linear_swiglu", (x, weight))], F32, in_tiles)
    assert good


def test_tiles_are_taken_where_they_are_faster():
    def row(tokens: int, rows: int, columns: int = 4096) -> int | None:
        x, weight = (torch.empty(n, columns, device="meta") for n in (tokens, 2 * rows))
        found = tiles_for(x, weight)
        return found and TILES.index(found)

    assert [row(t, 16384) for t in (0, 64, 65, 111, 112, 128, 129)] == [
        None,
        None,
        0,
        0,
        1,
        1,
        None,
    ]
    assert [row(t, 8192) for t in (96, 128)] == [None, 1], "too few large blocks"
    assert row(128, 16384, 4095) is None, "rows that the copy engine cannot read"


# --- quantized products ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("tokens", [1, 17, 130])  # one tile, a masked one, two
def test_quantized_products_of_several_tiles_and_parts(name, tokens):
    make = Maker(CPU, F32, seed=tokens)
    columns = 1024 if tokens == 17 else 256
    x = make.noise(tokens, columns + 16)[:, :columns]
    weight = quantize(make.noise(70, columns) / 32, SCHEMES[name])
    given = TORCH.quantize_tokens(x) if weight.quantized_activations else x
    for operation in ("quantized_linear", "quantized_linear_parts"):
        agrees(Case(f"{tokens}, {name}", operation, (given, weight)))
    few = weight.unit and tokens == 1  # whose step takes as many columns as there are
    assert len(KERNELS.quantized_linear_parts(given, weight)) == (1 if few else columns // 256)
    weight = quantize(make.noise(2 * 70, columns) / 32, SCHEMES[name])  # two blocks of them
    agrees(Case(f"{tokens}, {name}", "quantized_linear_swiglu", (given, weight)))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"), [(5, 70, 160), (33, 70, 160), (257, 3, 192)]
)
def test_products_in_words_of_rows_and_columns_that_fill_no_tile(name, tokens, rows, columns):
    """160 columns are five units of 32, which four warps cannot share. 257 tokens are a large tile
    and one of a single token."""
    make = Maker(CPU, F32, seed=tokens)
    x = make.noise(tokens, columns)
    weight = quantize(make.noise(2 * rows, columns) / 16, SCHEMES[name])
    assert weight.unit
    for operation in ("quantized_linear_parts", "quantized_linear_swiglu"):
        agrees(Case(f"{tokens}, {name}, {columns}", operation, (x, weight)))


@pytest.mark.parametrize("name", SCHEMES)
def test_many_tokens_meet_a_weight_made_plain(name):
    make = Maker(CPU, F32)
    weight = quantize(make.noise(33, 192), SCHEMES[name])
    truth = quantize_module.dequantize(weight, torch.float64)
    torch.testing.assert_close(dequantize(weight, F32).double(), truth, rtol=1e-6, atol=1e-9)
    if not weight.quantized_activations:
        many = MANY_FOR_WORDS if weight.unit else MANY
        agrees(Case(name, "quantized_linear", (make.noise(many + 1, 192), weight)))


def same(got, truth):
    assert got.dtype == truth.dtype
    assert torch.equal(got.values.float(), truth.values.float())
    assert torch.equal(got.scale, truth.scale)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_activations_are_quantized_where_they_are_made_as_by_a_launch_of_its_own(dtype):
    """To the bit, behind a norm and behind SwiGLU, whether that is a pass of its own (beyond 64
    tokens, of one part or several) or the product's last step."""
    make = Maker(CPU, dtype)
    stream, x, gain = make.noise(3, 72), make.noise(3, 72), make.noise(72)
    residual, normed = KERNELS.add_norm(stream, x, gain, gain + 1, 1e-6)
    again, quantized = KERNELS.add_norm(stream, x, gain, gain + 1, 1e-6, True)
    assert torch.equal(residual, again)
    same(quantized, KERNELS.quantize_tokens(normed))
    weight = quantize(make.noise(2 * 40, 64) / 8, SCHEMES["fp8"])
    for tokens in (2, 65):
        given = KERNELS.quantize_tokens(make.noise(tokens, 64))
        plain = KERNELS.quantized_linear_swiglu(given, weight)
        same(
            KERNELS.quantized_linear_swiglu(given, weight, True),
            KERNELS.quantize_tokens(plain),
        )
    parts = make.parts(3, 2, 80)
    same(swiglu_quantized(parts, dtype), KERNELS.quantize_tokens(swiglu_parts(parts, dtype)))


def test_every_byte_of_e4m3_is_decoded_and_encoded():
    """All finite numbers, through a weight and back through activations."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    every = every[~every.float().isnan()]
    weight = QuantizedWeight(every[None], torch.ones(1), "fp8")
    assert torch.equal(dequantize(weight, F32), every.float()[None])
    between = torch.cat([every.float(), every.float() * 1.0624, every.float() * 0.97])
    between = between[between.abs() <= 448][None]
    got, truth = (table.quantize_tokens(between) for table in (KERNELS, TORCH))
    assert torch.equal(got.values.float(), truth.values.float())


# --- attention ------------------------------------------------------------------------------------

SHAPE = replace(SMALL[0], heads=2, kv_heads=1, block_size=4)


@pytest.mark.parametrize("group", range(1, 9))
def test_query_heads_of_one_kv_head(group):
    shape = replace(SHAPE, heads=2 * group, kv_heads=2)
    make = Maker(CPU, F32)
    agrees(paged_case(make, shape, [(9, 1)], 6))
    agrees(paged_case(make, shape, [(5, 3)], 6))


@pytest.mark.parametrize("past", [62, 63, 64, 65, 126, 127, 128, 129])
def test_window_edge_at_the_edge_of_a_tile(past):
    """W = 64 is one tile of keys, W + 1 keys are seen: one more than a tile."""
    make = Maker(CPU, F32)
    agrees(paged_case(make, SHAPE, [(past, 1)], 64))
    agrees(paged_case(make, SHAPE, [(past, 2)], 64))


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("lengths", [(600,), (599, 3), (257, 1)])
def test_split_decode_joins_its_parts(window, lengths, monkeypatch):
    """Long tables get several parts; a short request in the same step leaves most of them empty."""
    launched = []
    from plamo_ref.kernels.attention import triton_decode

    plain = triton_decode.launch
    monkeypatch.setattr(
        triton_decode, "launch", lambda *a, **k: (launched.append(k), plain(*a, **k))
    )
    agrees(paged_case(Maker(CPU, F32), SHAPE, [(n - 1, 1) for n in lengths], window))
    assert len(launched) == 2
    assert launched[0]["PARTS"] > 1


def test_parts_fill_the_device_and_are_worth_joining():
    from plamo_ref.kernels.attention.triton_decode import KEYS_OF_A_PART, PROGRAMS, number_of_parts

    for programs in (1, 4, 37, 256, 4000):
        for keys in (1, 127, 300, 2049, 100_000):
            parts = number_of_parts(programs, keys)
            assert parts == 1 or parts * programs <= PROGRAMS
            assert parts == 1 or parts * KEYS_OF_A_PART <= keys
    assert number_of_parts(4, 2049) == 16


def test_a_chunk_after_a_long_past_spans_several_tiles():
    agrees(paged_case(Maker(CPU, F32), SHAPE, [(130, 70)], None))
    agrees(paged_case(Maker(CPU, F32), SHAPE, [(130, 70), (0, 33)], 50))


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])  # whole blocks a tile, and not
@pytest.mark.parametrize("window", [None, 31, 40])
def test_requests_of_one_step_have_different_pasts(window, block_size):
    """Tiles of 16 keys and of 4 queries × 8 heads: masked edges, and tiles between them."""
    shape = replace(SHAPE, heads=8, block_size=block_size)
    shares = [(100, 9), (0, 5), (31, 1), (64, 0), (32, 4), (3, 70 if block_size == 16 else 6)]
    agrees(paged_case(Maker(CPU, F32), shape, shares, window))


def test_heads_of_a_tile_divide_those_of_a_kv_head():
    from plamo_ref.kernels.attention.triton_prefill import heads_of_a_tile

    assert [heads_of_a_tile(n, 128) for n in (1, 2, 3, 8, 12, 16)] == [1, 2, 1, 8, 4, 16]
    assert heads_of_a_tile(256, 32) == 32


def test_padding_rows_disturb_nobody():
    """Rows of length 0 that point at the null place, whose content is NaN."""
    make = Maker(CPU, F32)
    case = paged_case(make, SHAPE, [(20, 1), (3, 1)], 6)
    q, keys, values, table, first, lens, window = case.arguments
    expected = KERNELS.paged_decode(*case.arguments)
    padded = [torch.cat((t, torch.zeros_like(t[:1]))) for t in (q, table, first, lens)]
    got = KERNELS.paged_decode(padded[0], keys, values, *padded[1:], window)
    assert torch.equal(got[:2], expected)
    assert not got[2].any(), "a row without keys is 0"


# --- convolution and scan ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [15, 16, 17, 63, 64, 65, 100])
def test_scan_and_convolution_at_the_edges_of_their_chunks(count):
    shape = replace(SMALL[0], mamba_heads=1)
    _, prefill = scan_cases(Maker(CPU, F32), shape, 1, (3, count))
    agrees(prefill)


@pytest.mark.parametrize("counts", [(1, 0, 65, 33, 32, 31), (97,), (64, 128)])
def test_segments_of_long_requests_pass_their_state_on(counts):
    """Segments of two chunks, among them empty requests and those that end with a segment."""
    few = Config(up_to=1 << 30, block=16, warps=4)
    plan = Plan(chunk=16, walk=few, sums=few, carry=replace(few, block=64), segment=32)
    cut = KERNELS.but(scan_prefill=partial(KERNELS.scan_prefill, plan=plan))
    shape = replace(SMALL[1], mamba_heads=2)  # P 32, N 24
    for photographs in (False, True):
        _, case = scan_cases(Maker(CPU, F32), shape, 1, counts, photographs=photographs)
        ((_, ratio, most, _, good),) = check([case], F32, cut)
        assert good, f"{case.name}: ratio {ratio:.1e}, maximum {most:.1e}"


@pytest.mark.parametrize("tokens", [1, 16, 17, 255, 256, 8192, 100_000])
@pytest.mark.parametrize("requests", [1, 30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, F32])
def test_plans_fit_together(tokens, requests, dtype):
    plan = plan_scan(torch.empty(tokens, 64, 128, dtype=dtype, device="meta"), requests)
    assert plan.segment % plan.chunk == 0
    assert plan.chunk >= 16, "products of matrices need it"
    if tokens <= 16 * requests and dtype == torch.bfloat16:
        assert plan.chunk == 16


@pytest.mark.parametrize("counts", [(1, 2, 33, 3, 4), (63, 64, 65), (130,)])
@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: f"K {shape.taps}")
def test_convolution_at_the_edges_of_its_blocks(shape, counts):
    *_, case = conv_cases(Maker(CPU, F32), replace(shape, mamba_heads=1), 1, counts)
    agrees(case)


@pytest.mark.parametrize("state", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_sizes_of_heads_and_states(size, state):
    shape = replace(SMALL[0], mamba_heads=2, size=size, state=state)
    for case in scan_cases(Maker(CPU, F32), shape, 2, (2, 5)):
        agrees(case)


def test_null_slots_of_padding_disturb_nobody():
    """Several rows share slot 0, which holds NaN."""
    case, _ = scan_cases(Maker(CPU, F32), SMALL[0], 2, (1, 2))
    inputs, params, cache, slots = case.arguments
    cache[0] = math.nan
    rows = torch.tensor([0, 1, 0, 1])
    padded = replace(inputs, **{n: t[rows] for n, t in vars(inputs).items()})
    slots = torch.cat((slots, torch.zeros(2, dtype=slots.dtype)))
    case = Case("", "state_update", (padded, params, cache, slots), (2,))
    got, twin = results(case, KERNELS), results(case, TORCH)
    live = torch.arange(len(cache)) > 0
    assert compare([got[0][:2], got[1][live]], [twin[0][:2], twin[1][live]])[0] < LIMITS[F32]
    assert got[0][:2].isfinite().all()


def test_a_request_without_new_tokens_keeps_its_memory():
    make = Maker(CPU, F32)
    cache, slots = make.noise(4, 6, 3), make.ints([2, 1])
    before = cache.clone()
    u, weight = make.noise(5, 6), make.noise(6, 4)
    starts, past = make.ints([0, 0, 5]), make.ints([1, 0]).bool()
    KERNELS.conv_prefill(u, weight, cache, slots, starts, past)
    assert torch.equal(cache[[0, 2, 3]], before[[0, 2, 3]])
    assert torch.equal(cache[1], u[-3:].T)


def test_extreme_steps_neither_overflow_nor_clamp():
    """Δ near 1e-9, where 1 + exp x is 1 in float32, and Δ of 500."""
    for case in scan_cases(Maker(CPU, F32), SMALL[0], 2, (2, 40)):
        inputs, params, *_ = case.arguments
        params.dt_bias.zero_()
        half = inputs.dt.shape[0] // 2
        inputs.dt[:half], inputs.dt[half:] = -20.0, 500.0
        agrees(case)
        assert results(case, KERNELS)[0].isfinite().all()


def test_softplus_of_very_negative_steps_is_their_exponential():
    case, _ = scan_cases(Maker(CPU, F32), SMALL[0], 1, (2,))
    inputs, params, cache, slots = case.arguments
    params.dt_bias.zero_(), inputs.dt.fill_(-20.0), cache[slots].zero_()
    cache.zero_()
    KERNELS.state_update(inputs, params, cache, slots)
    u, b = inputs.u[0, :, :, None], inputs.B[0]
    torch.testing.assert_close(cache[slots[0]], math.exp(-20) * u * b, rtol=1e-5, atol=0)


def test_what_is_written_every_few_tokens_is_to_the_bit_what_would_have_been():
    """Three requests at different places of rings of 4: after each write, the states of the kernel
    that writes at each token, whatever that of the ring made of them on the way."""
    make, shape = Maker(CPU, F32), SMALL[1]
    case, *_ = replay_cases(make, shape, 3, 4, (F32, False))
    _, params, cache, slots, lengths = case.arguments
    cache.ssm[slots] = make.noise(3, *cache.ssm.shape[1:])
    plain, written = cache.ssm.clone(), 0
    cache.ring_delta.zero_()
    for _ in range(8):
        inputs = scan_inputs(make, shape, 3)
        y = KERNELS.replay_state_update(inputs, params, cache, slots, lengths)
        truth = KERNELS.state_update(inputs, params, plain, slots)
        torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-5)
        for slot in slots[lengths % 4 == 0].tolist():
            assert torch.equal(cache.ssm[slot], plain[slot])
            written += 1
        lengths += 1
    assert written == 6


# --- what does not fit -------------------------------------------------------------------------


ALWAYS_FIT = {
    "argmax",
    "rope_tables",
    "quantize_tokens",
}  # one tensor alone cannot be at odds with another


@pytest.mark.parametrize(
    "operation", sorted({case.operation for case in CASES.values()} - ALWAYS_FIT)
)
def test_tensors_that_do_not_fit_together_are_named(operation):
    case = next(c for c in CASES.values() if c.operation == operation)
    wrong = list(case.arguments)
    place = 1 if operation in ("rms_norm", "sample") else 0
    if isinstance(wrong[0], Tensor):
        wrong[place] = wrong[place][..., :-1]
    elif operation.startswith("quantized"):
        wrong[0] = replace(wrong[0], values=wrong[0].values[:, :-1])
    elif operation == "replay_flush":
        wrong[0] = replace(wrong[0], A=wrong[0].A[:-1])
    else:
        wrong[0] = replace(wrong[0], B=wrong[0].B[:, :-1])
    with pytest.raises(KernelError, match=f"{operation.split('_')[0]}|convolution"):
        getattr(KERNELS, operation)(*wrong)


@pytest.mark.parametrize("operation", ["rms_norm", "linear_swiglu"])
def test_nothing_to_do_is_nothing(operation):
    arguments = {
        "rms_norm": (torch.zeros(0, 8), torch.ones(8), 1e-6),
        "linear_swiglu": (torch.zeros(0, 8), torch.zeros(6, 8)),
    }
    assert getattr(KERNELS, operation)(*arguments[operation]).shape[0] == 0


# --- the check notices --------------------------------------------------------------------------


def test_the_check_notices_a_wrong_kernel(monkeypatch, capsys):
    from plamo_ref.bench.kernels import check as check_module

    def few(device, dtype):
        yield next(case for case in CASES.values() if case.operation == "linear_swiglu")

    monkeypatch.setattr(check_module, "small_cases", few)
    assert main([]) == 0
    assert "all 1 are good" in capsys.readouterr().out
    broken = KERNELS.but(linear_swiglu=lambda x, w: KERNELS.linear_swiglu(x, w) * 1.0001)
    monkeypatch.setattr(check_module, "triton_table", lambda: broken)
    assert main([]) == 1
    assert "BAD" in capsys.readouterr().out


def test_the_check_notices_nan_in_another_place():
    one, other = torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan])
    assert compare([one], [one]) == (0, 0)
    assert compare([one], [other])[0] == math.inf
