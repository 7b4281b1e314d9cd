"""Penalties, biases and masks, against the same rules written token by token in Python's floats.

Invariant tested: a row depends on itself and its context alone; rows that ask for nothing come
back bit by bit; the given logits stay as they are.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.sampling import GuidedParams, SamplingError, SamplingParams
from plamo_ref.sampling.adjust import RowContext, adjust

V = 9
TOKENS = st.integers(0, V - 1)
IDS = st.lists(TOKENS, max_size=8)
GRAMMAR = GuidedParams(regex=".*")  # that there is one; what it allows, a guide says


@dataclass
class FixedGuide:
    """Always the same grammar: what is allowed, and whether the text may end."""

    allowed: tuple[bool, ...]
    complete: bool = False
    finished: bool = False

    def mask(self, stop_ids) -> np.ndarray:
        mask = np.array(self.allowed)
        mask[sorted(stop_ids)] = self.complete
        if not mask.any():
            mask[0] = True
        return mask

    def accept(self, token: int) -> None:
        raise AssertionError("adjust looks at a grammar and does not move it")


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3, 2.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.6, -1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.9]),
    logit_bias=st.dictionaries(TOKENS, st.sampled_from([-3.3, 0.1, 5.0, -math.inf]), max_size=3),
    min_tokens=st.sampled_from([0, 0, 4]),
)
GUIDES = st.none() | st.builds(
    FixedGuide, st.lists(st.booleans(), min_size=V, max_size=V).map(tuple), st.booleans()
)
CONTEXTS = st.builds(
    lambda params, prompt, output, stops, guide: RowContext(
        replace(params, guided=None if guide is None else GRAMMAR),
        prompt,
        output,
        stops,
        guide,
    ),
    PARAMS,
    IDS,
    IDS,
    st.frozensets(TOKENS, max_size=3),
    GUIDES,
)
ROWS = st.lists(
    st.tuples(st.lists(st.floats(-9, 9), min_size=V, max_size=V), CONTEXTS), min_size=1, max_size=5
)


def twin(row: list[float], context: RowContext) -> list[float]:
    """The rules, one token after the other."""
    p, adjusted = context.params, []
    for token, logit in enumerate(row):
        count = list(context.output_ids).count(token)
        if count or token in context.prompt_ids:
            r = p.repetition_penalty
            logit = logit / r if logit > 0 else logit * r
        logit -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
        logit += p.logit_bias.get(token, 0.0)
        if token in context.stop_ids and len(context.output_ids) < p.min_tokens:
            logit = -math.inf
        adjusted.append(logit)
    if context.guide is None:
        return adjusted
    allowed = context.guide.mask(context.stop_ids)
    masked = [x if ok else -math.inf for x, ok in zip(adjusted, allowed, strict=True)]
    if all(x == -math.inf for x in masked):  # the grammar has the last word
        return [0.0 if ok else -math.inf for ok in allowed]
    return masked


@given(ROWS)
def test_every_row_is_the_twin_s_to_the_last_bit(rows):
    logits = torch.tensor([row for row, _ in rows], dtype=torch.float64)
    before = logits.clone()
    got = adjust(logits, [context for _, context in rows])
    assert torch.equal(logits, before)
    assert got.tolist() == [twin(row, context) for row, context in rows]


@given(ROWS)
def test_a_row_does_not_know_its_company(rows):
    logits = torch.tensor([row for row, _ in rows], dtype=torch.float32)
    contexts = [context for _, context in rows]
    together = adjust(logits, contexts)
    for i, context in enumerate(contexts):
        assert torch.equal(together[i : i + 1], adjust(logits[i : i + 1], [context]))


def test_whoever_asks_for_nothing_costs_nothing():
    logits = torch.randn(3, V)
    nothing = RowContext(SamplingParams(temperature=0.3, top_k=2, seed=1), [1], [2], {3})
    assert adjust(logits, [nothing] * 3) is logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_that_ask_for_nothing_come_back_bit_by_bit(dtype):
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0)).to(dtype)
    nothing = RowContext(SamplingParams(), [1, 2], [3], {4})
    penalised = RowContext(SamplingParams(repetition_penalty=2.0), [1, 2], [3], {4})
    got = adjust(logits, [nothing, penalised, nothing])
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(got[[0, 2]].to(dtype), logits[[0, 2]])
    changed = (got[1].to(dtype) != logits[1]).nonzero()[:, 0].tolist()
    assert changed == [1, 2, 3]


def test_repetition_looks_at_prompt_and_output_the_others_at_the_output_alone():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0]], dtype=torch.float64)
    prompt, output = [0, 1], [2, 2, 3]

    def adjusted(**params):
        return adjust(logits, [RowContext(SamplingParams(**params), prompt, output, ())])[0]

    assert adjusted(repetition_penalty=2.0).tolist() == [1.0, -4.0, 1.0, -4.0, 2.0]
    assert adjusted(presence_penalty=0.5).tolist() == [2.0, -2.0, 1.5, -2.5, 2.0]
    assert adjusted(frequency_penalty=0.5).tolist() == [2.0, -2.0, 1.0, -2.5, 2.0]


def test_stop_tokens_are_forbidden_until_min_tokens():
    params = SamplingParams(min_tokens=2)
    for output, forbidden in (([], True), ([5], True), ([5, 5], False), ([5, 5, 5], False)):
        row = adjust(torch.zeros(1, V), [RowContext(params, [0], output, {3, 7})])[0]
        assert row.isneginf().nonzero()[:, 0].tolist() == ([3, 7] if forbidden else [])


def test_a_grammar_has_the_last_word():
    """A user who biases away all that the grammar allows still gets what it allows."""
    guide = FixedGuide((False, True, True, *[False] * (V - 3)))
    bias = {1: -math.inf, 2: -math.inf}
    params = SamplingParams(logit_bias=bias, guided=GRAMMAR)
    row = adjust(torch.randn(1, V), [RowContext(params, [0], [], (), guide)])[0]
    assert row.isfinite().nonzero()[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bias_without_end_is_refused(value):
    with pytest.raises(SamplingError, match=r"logit_bias must be .* below infinity"):
        SamplingParams(logit_bias={3: value})
