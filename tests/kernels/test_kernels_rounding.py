"""Where the torch twins round in bfloat16: after which steps, and after which not.

Invariant tested: each twin equals a float64 computation that is rounded exactly where the published
model rounds, and none that rounds elsewhere: a product that is one step too long or too short
changes the last bit of many numbers, and no tolerance for bfloat16 would notice.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plamo_ref.kernels.attention.twin import paged_decode, paged_prefill
from plamo_ref.kernels.conv.twin import conv_prefill, conv_update
from plamo_ref.kernels.linear.swiglu import swiglu
from plamo_ref.kernels.linear.twin import linear_swiglu, whole
from plamo_ref.kernels.norm.twin import add_norm, rms_norm
from plamo_ref.kernels.rope.twin import qk_norm_rope, rope_tables, rotate
from plamo_ref.kernels.ssm.selection import SelectionParams, selection
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams, scan_prefill, state_update
from plamo_ref.reference.functions import rms_norm as reference_norm
from plamo_ref.reference.functions import rope

BF16, EPS = torch.bfloat16, 1e-6
T, D, H, P, N, K = 37, 96, 4, 12, 10, 4  # √P is no power of two: dividing by it rounds
Round = Callable[[Tensor], Tensor]


def r(x: Tensor) -> Tensor:
    """Rounded to bfloat16, still in float64."""
    return x.to(BF16).double()


def exact(x: Tensor) -> Tensor:
    return x


def numbers(*shape: int, seed: int = 0, around: float = 0.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (around + torch.randn(shape, generator=draw, dtype=torch.float64)).to(BF16)


def unlike(got: Tensor, expected: Tensor) -> float:
    """Share of numbers that differ."""
    return float((got.double() != r(expected)).double().mean())


def check(got: Tensor, right: Tensor, **wrong: Tensor) -> None:
    """`got` is `right`, but for sums that float32 rounds to the other side; and not `wrong`."""
    assert got.dtype == BF16
    assert unlike(got, right) < 0.01
    for name, other in wrong.items():
        assert unlike(got, other) > 0.03, f"this cannot tell: {name}"


def normed(x: Tensor, gain: Tensor, between: Round = r) -> Tensor:
    """RMS norm, before its last rounding."""
    x, gain = x.double(), gain.double()
    return between(x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()) * gain


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize("norm", [rms_norm, reference_norm])
def test_a_norm_is_rounded_before_the_gain(norm):
    x, gain = numbers(T, D), numbers(D, seed=1, around=1)
    check(norm(x, gain, EPS), normed(x, gain), no_rounding_between=normed(x, gain, exact))


def test_the_stream_is_rounded_between_two_norms():
    residual, x = numbers(T, D), numbers(T, D, seed=1)
    post, pre = numbers(D, seed=2, around=1), numbers(D, seed=3, around=1)
    stream, out = add_norm(residual, x, post, pre, EPS)
    added = r(normed(x, post))
    check(stream, residual.double() + added, one_step=residual.double() + normed(x, post))
    right = r(residual.double() + added)
    check(out, normed(right, pre), not_rounded=normed(residual.double() + added, pre))


def test_parts_are_added_before_they_are_rounded():
    parts = torch.randn(3, T, D, generator=torch.Generator().manual_seed(0))
    check(whole(parts, BF16), parts.double().sum(0), each_rounded=r(parts).sum(0))


def test_the_gate_is_rounded_before_it_meets_what_it_gates():
    x = numbers(T, 2 * D)
    gate, up = x.double().chunk(2, dim=-1)
    check(swiglu(x), r(silu(gate)) * up, one_step=silu(gate) * up)
    weight = numbers(2 * D, D, seed=1) / 8
    product = r(x[:, :D].double() @ weight.double().T)
    gate, up = product.chunk(2, dim=-1)
    got = linear_swiglu(x[:, :D], weight)
    check(got, r(silu(gate)) * up, one_step=silu(gate) * up)


def rotated(x: Tensor, tables: Tensor, between: Round = r) -> Tensor:
    (cos, sin), (first, second) = tables.double(), x.double().chunk(2, dim=-1)
    return torch.cat(
        (
            between(first * cos) - between(second * sin),
            between(second * cos) + between(first * sin),
        ),
        dim=-1,
    )


def test_a_rotation_rounds_each_product():
    x, positions = numbers(T, H, P), torch.arange(T) * 7
    tables = rope_tables(positions, P, 1e4, BF16)
    wrong = rotated(x, tables, exact)
    check(rotate(x, tables), rotated(x, tables), one_step=wrong)
    check(rope(x, positions, 1e4), rotated(x, tables), one_step=wrong)


def test_queries_and_keys_are_rounded_after_norm_and_gain_and_products():
    qkv, positions = numbers(T, 3 * H * P), torch.arange(T) * 5
    gains = [numbers(H, P, seed=seed, around=1) for seed in (1, 2)]
    tables = rope_tables(positions, P, 1e4, BF16)
    got = qk_norm_rope(qkv, *gains, tables)
    parts = qkv.view(T, 3, H, P).unbind(1)
    for side in (0, 1):
        x, gain = parts[side], gains[side]
        check(
            got[side],
            rotated(r(normed(x, gain)), tables),
            before_the_gain=rotated(r(normed(x, gain, exact)), tables),
            after_the_gain=rotated(normed(x, gain), tables),
        )
    assert torch.equal(got[2], parts[2])


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_attention_rounds_scores_and_weights(phase):
    """The softmax itself is in float32: its sum is not rounded."""
    keys, values = numbers(5, 8, H, P), numbers(5, 8, H, P, seed=1)
    table = torch.tensor([[3, 1, 4]])
    q = numbers(20, 2 * H, P, seed=2) * 2
    memory = (keys, values, table, torch.tensor([0]), torch.tensor([20]))
    seen = torch.ones(20, 20, dtype=torch.bool)
    if phase == "prefill":
        got, seen = paged_prefill(q, *memory, torch.tensor([0, 20]), None), seen.tril()
    else:
        got = torch.cat([paged_decode(each[None], *memory, None) for each in q])
    k, v = (
        cache[table[0]].flatten(0, 1)[:20].double().repeat_interleave(2, 1)
        for cache in (keys, values)
    )

    def attend(product: Round, score: Round, weight: Round) -> Tensor:
        scores = score(product(torch.einsum("thp,shp->hts", q.double(), k)) / math.sqrt(P))
        weights = weight(scores.masked_fill(~seen, -math.inf).softmax(-1))
        return torch.einsum("hts,shp->thp", weights, v)

    check(
        got,
        attend(r, r, r),
        no_product_rounded=attend(exact, r, r),
        no_score_rounded=attend(r, exact, r),
        no_weight_rounded=attend(r, r, exact),
    )


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_convolution_rounds_its_products_its_sum_and_its_gate(phase):
    u, weight = numbers(T, H * P), numbers(H * P, K, seed=1)
    cache, slots = numbers(T, H * P, K - 1, seed=2), torch.arange(T)
    inputs = torch.cat((cache, u[..., None]), dim=-1).double()  # [T, C, K]
    if phase == "decode":
        got = conv_update(u, weight, cache.clone(), slots)
    else:
        got = conv_prefill(
            u, weight, cache.clone(), slots, torch.arange(T + 1), torch.ones(T, dtype=torch.bool)
        )

    def convolved(product: Round, total: Round) -> Tensor:
        return silu(total(product(inputs * weight.double()).sum(-1)))

    right = convolved(r, r)
    check(got, right, no_product=convolved(exact, r), no_sum=convolved(r, exact))


def test_selection_rounds_each_norm_and_dt():
    bcdt, rank = numbers(T, 2 * N + D), D
    gains = [numbers(size, seed=seed, around=1) for seed, size in enumerate((N, N, rank), start=1)]
    weight = numbers(H, rank, seed=5) / 8
    B, C, dt = selection(bcdt, SelectionParams(*gains, weight, EPS))
    parts = bcdt.split((N, N, rank), dim=-1)
    for got, x, gain in ((B, parts[0], gains[0]), (C, parts[1], gains[1])):
        check(got, normed(x, gain), one_step=normed(x, gain, exact))
    product = weight.double().T
    right = r(normed(parts[2], gains[2])) @ product
    check(dt, right, gain_not_rounded=normed(parts[2], gains[2]) @ product)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_scan_is_rounded_once_before_its_gate_which_is_rounded_too(phase):
    inputs = ScanInputs(
        u=numbers(T, H, P),
        z=numbers(T, H, P, seed=1),
        dt=numbers(T, H, seed=2),
        B=numbers(T, N, seed=3),
        C=numbers(T, N, seed=4),
    )
    params = ScanParams(-numbers(H, seed=5).abs(), numbers(H, seed=6), numbers(H, seed=7))
    slots, cache = torch.arange(T), torch.zeros(T, H, P, N)
    if phase == "decode":
        got = state_update(inputs, params, cache, slots)
    else:
        got = scan_prefill(
            inputs, params, cache, slots, torch.arange(T + 1), torch.zeros(T, dtype=torch.bool)
        )
    u, z, dt, B, C = (getattr(inputs, name).double() for name in ("u", "z", "dt", "B", "C"))
    step = F.softplus(dt + params.dt_bias.double())  # from a state of zeros: y = Δ u (B · C)
    y = (step * (B * C).sum(-1, keepdim=True))[..., None] * u + params.D.double()[:, None] * u

    right = r(y) * r(silu(z))
    check(got, right, not_before=y * r(silu(z)), gate_not_rounded=r(y) * silu(z))
