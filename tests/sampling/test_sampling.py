"""Tokens from logits, against a sampler written with Python's sorting and floats.

Invariant tested: a token depends on its logits, parameters, seed and number alone.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.kernels.sample.twin import sample as draw_rows
from plamo_ref.sampling import (
    SamplingError,
    SamplingParams,
    child_seed,
    token_logprobs,
    uniform,
)
from plamo_ref.sampling.adjust import RowContext, adjust
from plamo_ref.sampling.random import MASK
from plamo_ref.sampling.sampler import knob_table, sample

LOGITS = st.lists(st.integers(-40, 40).map(lambda x: x / 8), min_size=1, max_size=12)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_k=st.integers(-1, 6),
    top_p=st.sampled_from([0.05, 0.3, 0.517, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.011, 0.237, 1.0]),
)


def kept(logits: list[float], params: SamplingParams) -> list[tuple[int, float]]:
    """Token ids that may be drawn and their probabilities, the likeliest first."""
    top = max(logits)
    weights = [math.exp((x - top) / params.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    ranked = [(i, weights[i] / math.fsum(weights)) for i in order]
    ranked = [(i, p) for i, p in ranked if p >= params.min_p * ranked[0][1]]
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    mass = math.fsum(p for _, p in ranked)
    chosen, total = [], 0.0
    for i, p in ranked:
        if total >= params.top_p:
            break
        chosen.append((i, p / mass))
        total += p / mass
    return chosen


def near_an_edge(logits: list[float], params: SamplingParams) -> bool:
    """Whether rounding could decide who is in: compared at both sides of top-p."""
    sides = [
        kept(logits, SamplingParams(**(vars(params) | {"top_p": min(1.0, params.top_p + by)})))
        for by in (-1e-9, 1e-9)
    ]
    return [i for i, _ in sides[0]] != [i for i, _ in sides[1]]


@given(LOGITS, PARAMS)
def test_a_grid_of_uniform_numbers_draws_the_truncated_distribution(logits, params):
    """Inverse sampling is exact: of n evenly spaced numbers a token gets n·p, give or take one."""
    if near_an_edge(logits, params):
        return
    count = 500
    rows = torch.tensor([logits] * count, dtype=torch.float32)
    grid = [(i + 0.5) / count for i in range(count)]
    drawn = torch.bincount(sample(rows, [params] * count, grid), minlength=len(logits))
    chosen = kept(logits, params)
    total = math.fsum(p for _, p in chosen)
    for token, probability in chosen:
        assert abs(drawn[token].item() - count * probability / total) <= 1.001
    assert drawn.sum() == sum(drawn[token] for token, _ in chosen)


@given(st.lists(st.tuples(st.integers(0, 99), PARAMS), min_size=1, max_size=6))
def test_a_row_does_not_know_its_company(rows):
    generator = torch.Generator().manual_seed(len(rows))
    logits = torch.randn(len(rows), 50, generator=generator)
    params = [SamplingParams(temperature=0) if seed % 3 == 0 else params for seed, params in rows]
    numbers = [uniform(seed, 0) for seed, _ in rows]
    together = sample(logits, params, numbers).tolist()
    alone = [sample(logits[i : i + 1], [params[i]], [numbers[i]]).item() for i in range(len(rows))]
    assert together == alone


def test_greedy_takes_the_first_of_the_largest():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    greedy = SamplingParams(temperature=0)
    assert sample(logits, [greedy] * 2, [0.9, 0.9]).tolist() == [1, 0]
    assert SamplingParams(temperature=1e-6).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_among_equals_the_smaller_id_counts_as_likelier():
    logits = torch.zeros(1, 5)
    for k in range(1, 6):
        params = SamplingParams(top_k=k)
        drawn = {sample(logits, [params], [u / 20]).item() for u in range(20)}
        assert drawn == set(range(k))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_will_do(dtype):
    logits = torch.tensor([[0.0, 1.0, -1.0]], dtype=dtype)
    params = SamplingParams(temperature=0.5)
    assert [sample(logits, [params], [u]).item() for u in (0.0, 0.1, 0.12, 0.98, 0.99)] == [
        0,
        0,
        1,
        1,
        2,
    ]


@pytest.mark.parametrize(("top_p", "count"), [(0.25, 1), (0.5, 2), (0.75, 3)])
def test_top_p_that_is_reached_exactly_keeps_no_token_more(top_p, count):
    """Four equally likely tokens: their weights are equal integers, so the sums are exact."""
    params = [SamplingParams(top_p=top_p)] * 40
    tokens = sample(torch.zeros(40, 4), params, [i / 40 for i in range(40)]).tolist()
    assert sorted(set(tokens)) == list(range(count))


def test_top_p_keeps_the_token_that_reaches_p():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for top_p, tokens in ((0.4, {0}), (0.6, {0, 1}), (0.79, {0, 1}), (0.9, {0, 1, 2})):
        params = SamplingParams(top_p=top_p)
        drawn = {sample(logits, [params], [u / 50]).item() for u in range(50)}
        assert drawn == tokens, top_p


def test_min_p_is_relative_to_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for min_p, tokens in ((0.3, {0, 1, 2}), (0.5, {0, 1}), (0.7, {0})):
        params = SamplingParams(min_p=min_p)
        drawn = {sample(logits, [params], [u / 50]).item() for u in range(50)}
        assert drawn == tokens, min_p


def test_infinitely_unlikely_tokens_are_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]])
    drawn = {sample(logits, [SamplingParams()], [u / 20]).item() for u in range(20)}
    assert drawn == {1, 3}
    assert sample(logits, [SamplingParams()], [1 - 2**-53]).item() == 3


def test_the_largest_uniform_number_draws_the_last_token():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 1000, generator=generator)
    last = sample(logits, [SamplingParams()] * 200, [1 - 2**-53] * 200)
    assert set(last.tolist()) == {999}
    five = sample(logits, [SamplingParams(top_k=5)] * 200, [1 - 2**-53] * 200)
    assert torch.equal(five, logits.topk(5).indices.amax(-1))


# --- any row, against Python's sorting and whole numbers ----------------------------------------


def by_hand(logits: list[float], params: SamplingParams, u: float) -> int:
    """The rule written down once more: who is kept, by rank; then the walk in the order of ids."""
    ids = range(len(logits))
    if params.greedy:
        return max(ids, key=lambda i: (logits[i], -i))
    top = max(logits)
    weights = [int(math.exp((x - top) / params.temperature) * 2**40 + 0.5) for x in logits]
    weights = [w if w >= params.min_p * 2**40 else 0 for w in weights]
    order = sorted(ids, key=lambda i: (-logits[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    goal = params.top_p * sum(weights[i] for i in order)
    kept, reached = set(), 0
    for i in order:
        if params.top_p < 1 and reached >= goal and kept:
            break
        kept.add(i)
        reached += weights[i]
    walked = 0
    for i in ids:
        walked += weights[i] if i in kept else 0
        if walked > u * reached:
            return i
    raise AssertionError("u is below 1")


@given(st.lists(st.tuples(LOGITS, PARAMS, st.integers(0, 2**53 - 1)), min_size=1, max_size=5))
def test_rows_are_drawn_as_by_hand(rows):
    """Weights are whole numbers: in float64 the two must be the same token, edges and all."""
    size = max(len(logits) for logits, _, _ in rows)
    padded = [[*logits, *[-math.inf] * (size - len(logits))] for logits, _, _ in rows]
    params = [p for _, p, _ in rows]
    numbers = [u / 2**53 for _, _, u in rows]
    drawn = sample(torch.tensor(padded, dtype=torch.float64), params, numbers).tolist()
    assert drawn == [by_hand(*row) for row in zip(padded, params, numbers, strict=True)]


@given(LOGITS, PARAMS, st.integers(0, 2**20))
def test_float32_draws_what_float64_draws_unless_u_is_at_an_edge(logits, params, u):
    number = (u + 0.5) / 2**20
    around = [by_hand(logits, params, min(max(number + by, 0), 0.999)) for by in (-1e-5, 1e-5)]
    if around[0] == around[1] and not near_an_edge(logits, params):
        assert sample(torch.tensor([logits]), [params], [number]).item() == around[0]


def test_logits_that_swap_ranks_move_nobody_else():
    """1e-7 more or less for two tokens of the same size: all other draws stay."""
    grid = [(i + 0.5) / 1000 for i in range(1000)]
    params = [SamplingParams(top_p=0.99)] * 1000
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0 + 1e-7, 2.5]], dtype=torch.float64)
    swapped = logits.clone()
    swapped[0, 1], swapped[0, 3] = logits[0, 3], logits[0, 1]
    one, other = (sample(x.expand(1000, 5), params, grid) for x in (logits, swapped))
    assert (one != other).sum() <= 2


def test_a_float32_sum_of_many_small_weights_loses_nothing():
    """100,000 equal tokens: whole numbers add up exactly, in float32 logits too."""
    logits = torch.zeros(3, 100_000)
    numbers = [0.0, 0.123455, 1 - 2**-53]
    assert sample(logits, [SamplingParams()] * 3, numbers).tolist() == [0, 12345, 99_999]


def test_only_where_somebody_truncates_is_anything_sorted():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    flags = []

    def draw(logits, knobs, truncated):
        flags.append(truncated)
        return draw_rows(logits, knobs, truncated)

    for params in ({}, {"min_p": 0.1}, {"top_k": 3}, {"top_p": 0.5}):
        rows = [SamplingParams(**params)] * 4
        got = sample(logits, rows, [0.1, 0.4, 0.6, 0.9], draw)
        table = knob_table(rows, [0.1, 0.4, 0.6, 0.9], 50)
        assert torch.equal(got, draw_rows(logits, table, True)), "the promise changes no token"
    assert flags == [False, False, True, True]
    sample(logits, [SamplingParams(temperature=0)] * 4, [0.0] * 4, draw)
    assert len(flags) == 4, "all greedy: nothing but an argmax"


def test_a_row_in_which_nothing_is_allowed_gives_the_first_id():
    logits = torch.full((2, 3), -math.inf)
    rows = [SamplingParams(), SamplingParams(temperature=0)]
    assert sample(logits, rows, [0.9, 0.9]).tolist() == [0, 0]


# --- uniform numbers ------------------------------------------------------------------------------


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_uniform_is_below_one_and_has_53_bits(seed, index):
    u = uniform(seed, index)
    assert 0 <= u < 1
    assert (u * 2**53).is_integer()
    assert u == uniform(seed, index)


@given(st.lists(st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**40)), max_size=9))
def test_uniform_of_arrays_is_that_of_each(pairs):
    seeds = np.array([seed & MASK for seed, _ in pairs], dtype=np.uint64)
    numbers = uniform(seeds, np.array([index for _, index in pairs], dtype=np.uint64))
    assert numbers.tolist() == [uniform(*pair) for pair in pairs]


def test_uniform_numbers_are_spread_and_neighbouring_seeds_share_none():
    numbers = [uniform(seed, index) for seed in range(30) for index in range(100)]
    assert len(set(numbers)) == 3000
    tenths = [sum(int(u * 10) == tenth for u in numbers) for tenth in range(10)]
    assert min(tenths) > 240  # of 300; five standard deviations are 82
    assert max(tenths) < 360


def splitmix64(state: int) -> int:
    """The published generator's output for a state, written out once more."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_uniform_is_splitmix64_of_the_index_after_the_seed():
    """Seeds that users wrote down keep their meaning."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published
    for seed, index in ((0, 0), (1, 0), (0, 1), (123, 456)):
        start = splitmix64(seed) >> 11 << 11
        number = splitmix64((start + index + 1) % 2**64) >> 11
        assert uniform(seed, index) == number / 2**53


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", -2),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("max_tokens", 0),
        ("n", 0),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("min_tokens", 17),
        ("logit_bias", {1: math.nan}),
        ("logprobs", 101),
        ("prompt_logprobs", -1),
        ("stop", ["a", ""]),
        ("stop", [3]),
        ("stop", {"a": 1}),
        ("stop", ["\ud800"]),
        ("n", True),
        ("n", 2.0),
        ("n", 10**6),
        ("temperature", "0.5"),
        ("temperature", None),
        ("top_k", 2.5),
        ("seed", 1.5),
        ("seed", "x"),
        ("max_tokens", 3.7),
        ("logprobs", True),
        ("stop_token_ids", 5),
        ("stop_token_ids", [-1]),
        ("logit_bias", {"5": 1.0}),
        ("logit_bias", {5: None}),
        ("ignore_eos", "no"),
        ("guided", {"regex": "a"}),
    ],
)
def test_impossible_parameters_are_refused_by_name(field, value):
    with pytest.raises(SamplingError, match=f"^{field} must be "):
        SamplingParams(**{field: value})


def test_none_is_a_value_where_vllm_has_it():
    names = ("stop", "stop_token_ids", "logit_bias", "seed", "logprobs", "prompt_logprobs")
    assert SamplingParams(**dict.fromkeys(names)) == SamplingParams()
    assert SamplingParams(max_tokens=None, min_tokens=999).max_tokens is None


def test_numbers_of_numpy_and_torch_are_python_s_from_here_on():
    params = SamplingParams(
        n=np.int64(2),
        temperature=torch.tensor(0.5),
        seed=np.uint64(7),
        top_k=torch.tensor(3),
        stop_token_ids=np.array([3, 4]),
        logit_bias={np.int32(5): np.float64(1)},
        ignore_eos=np.bool_(True),
    )
    assert params == SamplingParams(
        n=2,
        temperature=0.5,
        seed=7,
        top_k=3,
        stop_token_ids=(3, 4),
        logit_bias={5: 1.0},
        ignore_eos=True,
    )
    values = [*vars(params).values(), *params.stop_token_ids, *params.logit_bias]
    assert {type(v).__module__ for v in values} == {"builtins"}


def test_a_plain_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)


# --- between the logits and the choice ------------------------------------------------------------

IDS = st.lists(st.integers(0, 7), max_size=9)


def adjusted_by_hand(logits: list[float], context: RowContext) -> list[float]:
    """Repetition over prompt and output, frequency and presence over the output, bias, stops."""
    p, out = context.params, []
    for token, x in enumerate(logits):
        if token in {*context.prompt_ids, *context.output_ids}:
            x = x / p.repetition_penalty if x > 0 else x * p.repetition_penalty
        times = list(context.output_ids).count(token)
        x -= times * p.frequency_penalty + (times > 0) * p.presence_penalty
        x += p.logit_bias.get(token, 0)
        early = len(context.output_ids) < p.min_tokens and token in context.stop_ids
        out.append(-math.inf if early else x)
    return out


@given(
    prompts=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=4),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([-2.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.5, 0.0, 2.0]),
    bias=st.dictionaries(st.integers(0, 7), st.integers(-9, 9), max_size=3),
    least=st.integers(0, 6),
)
def test_adjusting_is_what_one_would_do_by_hand(
    prompts, repetition, presence, frequency, bias, least
):
    params = SamplingParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        min_tokens=least,
    )
    contexts = [RowContext(params, prompt, output, {2, 5}) for prompt, output in prompts]
    contexts.append(RowContext(SamplingParams(), [1], [2], {2}))  # asks for nothing
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(contexts), 8, generator=generator, dtype=torch.float64)
    before = logits.clone()
    got = adjust(logits, contexts)
    expected = [adjusted_by_hand(*row) for row in zip(before.tolist(), contexts, strict=True)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(got[-1], before[-1])
    assert torch.equal(logits, before), "the given tensor is not changed"


def test_nothing_asked_nothing_done():
    logits = torch.zeros(2, 3)
    assert adjust(logits, [RowContext(SamplingParams(), [1], [], ())] * 2) is logits


def test_log_probabilities_are_of_the_row_as_it_is():
    logits = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1]]).log() + 3
    first, second = token_logprobs(logits, [2, 1], 2)
    assert (first.token_id, first.rank) == (2, 2)
    assert math.exp(first.logprob) == pytest.approx(0.4)
    assert [token for token, _ in first.top] == [0, 2]
    assert (second.rank, math.exp(second.top[0][1])) == (1, pytest.approx(0.7))
    assert token_logprobs(logits, [0, 0], 0)[1].top == ()


def test_completions_have_seeds_of_their_own_and_the_first_keeps_the_request_s():
    seeds = [child_seed(7, index) for index in range(50)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 50
    params = SamplingParams(n=3, seed=7)
    assert [params.completion(i).seed for i in range(3)] == seeds[:3]
    assert {params.completion(i).n for i in range(3)} == {1}
