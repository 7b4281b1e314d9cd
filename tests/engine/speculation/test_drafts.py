"""Drafts in an engine: the same texts in fewer steps, and nothing else changes.

Invariant tested: with drafts a request gets the ids that it gets without, greedy or drawn, and ends
where it ends without; a draft takes only memory and time that is left. (The law with drafts is in
tests/proof.)
"""

import json
from dataclasses import replace

import pytest
from engines import new_core

from plamo_ref import LLM, EngineConfig, SamplingParams
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.drafts import Draft, Drafts
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.engine.speculation.drafter import MOST_TOKENS
from plamo_ref.engine.tokens import NO_TOKEN
from plamo_ref.errors import PlamoRefError

NGRAM = {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 1}
PROMPTS = ["吾輩は猫である。名前はまだ無い。" * 3, "one two three one two three one two"]


@pytest.fixture(scope="module")
def plain():
    return LLM("tiny", dtype="float64", device="cpu", memory_bytes=2**26, record=True)


def drafting(overlap=False, **engine):
    config = {"speculative_config": NGRAM, "overlap": overlap, "record": True, **engine}
    return LLM("tiny", dtype="float64", device="cpu", memory_bytes=2**26, **config)


@pytest.fixture(scope="module", params=[False, True], ids=["", "overlapped"])
def llm(request):
    return drafting(request.param, enable_prefix_caching=request.param)


def outputs(llm, prompts, params):
    found = [r.outputs[0] for r in llm.generate(prompts, params, use_tqdm=False)]
    llm.core.cache.check_integrity()
    return found


@pytest.fixture(scope="module", params=[0, 0.7])
def without(plain, request):
    """Parameters, what comes of them without drafts, and in how many steps."""
    params = SamplingParams(temperature=request.param, max_tokens=80, seed=3, ignore_eos=True)
    start = len(plain.records)
    found = outputs(plain, PROMPTS, params)
    return params, found, len(plain.records) - start


def test_the_same_ids_in_fewer_steps(without, llm):
    params, expected, steps = without
    before, start = llm.core.queues.drafter.counts, len(llm.records)
    got = outputs(llm, PROMPTS, params)
    assert [o.token_ids for o in got] == [o.token_ids for o in expected]
    assert [o.text for o in got] == [o.text for o in expected]
    drafted = llm.records[start:]
    assert len(drafted) < (0.9 if params.temperature == 0 else 1.01) * steps
    counts = [new - old for new, old in zip(llm.core.queues.drafter.counts, before, strict=True)]
    assert counts[1] == sum(share.drafted for record in drafted for share in record.scheduled)
    assert counts[2] == sum(record.accepted for record in drafted)
    assert steps - len(drafted) <= counts[2]
    assert all(record.num_tokens <= MOST_TOKENS for record in drafted)


@pytest.fixture(scope="module")
def ends(plain):
    """Parameters that end one text at many places, and where each ends without drafts."""
    whole = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)
    (text,) = outputs(plain, PROMPTS[:1], whole)
    lengths = [replace(whole, max_tokens=most) for most in (41, 43, 44, 46)]
    tokens = [text.token_ids[place] for place in range(20, 60, 9)]
    places = range(len(text.text) // 3, len(text.text) - 4, 16)
    stops = [text.text[place : place + 4] for place in places]
    asked = [*lengths, *(replace(whole, stop_token_ids=[token]) for token in tokens)]
    asked += [replace(whole, stop=[stop]) for stop in stops]
    found = outputs(plain, PROMPTS[:1] * len(asked), asked)
    sizes = [p.max_tokens for p in lengths] + [text.token_ids.index(t) + 1 for t in tokens]
    assert [o.token_ids for o in found[: len(sizes)]] == [text.token_ids[:n] for n in sizes]
    assert [o.stop_reason for o in found] == [*[None] * len(lengths), *tokens, *stops]
    return asked, found


def test_a_text_ends_where_it_ends_without_drafts(ends, llm):
    asked, expected = ends
    start = len(llm.records)
    for one, other in zip(outputs(llm, PROMPTS[:1] * len(asked), asked), expected, strict=True):
        assert (one.token_ids, one.text) == (other.token_ids, other.text)
        assert (one.finish_reason, one.stop_reason) == (other.finish_reason, other.stop_reason)
    assert sum(record.accepted for record in llm.records[start:]) > len(asked)
    for place in (1, -1, -3):  # alone, and streamed
        start = len(llm.records)
        pieces = list(llm.stream(PROMPTS[0], asked[place]))
        assert "".join(piece.text for piece in pieces) == expected[place].text
        assert pieces[-1].finish_reason == expected[place].finish_reason
        assert sum(record.accepted for record in llm.records[start:])


def test_who_wants_more_than_tokens_gets_no_drafts(plain, llm):
    asked = [
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, **more)
        for more in (
            {"repetition_penalty": 1.1},
            {"logprobs": 1},
            {"prompt_logprobs": 1},
            {"min_tokens": 20},
            {"logit_bias": {7: 1.0}},
        )
        for _ in PROMPTS
    ]
    before, prompts = llm.core.queues.drafter.counts, PROMPTS * (len(asked) // len(PROMPTS))
    expected, got = outputs(plain, prompts, asked), outputs(llm, prompts, asked)
    assert [o.token_ids for o in got] == [o.token_ids for o in expected]
    assert llm.core.queues.drafter.counts == before


def test_where_nothing_comes_again_the_steps_are_those_without_drafts():
    config = {**NGRAM, "prompt_lookup_min": 16, "prompt_lookup_max": 16}
    shares = []
    for speculative in (None, config):
        with drafting(True, speculative_config=speculative) as llm:
            params = SamplingParams(temperature=1, seed=1, max_tokens=15, ignore_eos=True)
            outputs(llm, PROMPTS, params)
            shares.append([[(s.start, s.num_tokens) for s in r.scheduled] for r in llm.records])
    assert shares[0] == shares[1]


def test_of_guesses_only_those_are_taken_whose_token_is_known_and_goes_on():
    """Of several requests, one of whom has ended meanwhile: each has its rows."""
    core = new_core(speculative_config=NGRAM)
    drafter = core.queues.drafter

    def request(*outputs, stop_ids=()):
        made = Request("r", (1, 2), SamplingParams(), stop_ids, 0, 0)
        made.output_ids += outputs
        return made

    ended, right, stops = request(3), request(3), request(3, stop_ids=(3,))
    wrong, nan, beyond = request(4), request(3), request(3)
    ended.finish("abort")
    each = (ended, right, stops, wrong, nan, beyond)
    drafts = Drafts({r: Draft((3, 5), None) for r in each})
    size = core.runner.model.config.vocab_size
    given = drafter.take(drafts, [5, 6, 5, 7, 5, 6, 5, 6, NO_TOKEN, 6, size, 6])
    assert given == [(right, 2), (right, 3)]
    assert [r.output_ids for r in each] == [[3], [3, 5, 7], [3], [4], [3], [3]]
    assert drafter.counts == (5, 10, 2)


def test_a_draft_takes_only_what_is_left():
    """No slot beside the seat's, no budget beside the known tokens: no drafts, and no loss."""
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    for engine in ({"max_num_batched_tokens": 1}, {"max_num_seqs": 1}):
        with drafting(**engine) as llm:
            if "max_num_seqs" in engine:
                slots = llm.core.cache.slots
                slots.take(slots.num_free - 1)  # somebody else has them
            (one,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
            assert len(one.outputs[0].token_ids) == 60
            assert llm.core.queues.drafter.counts == (0, 0, 0)
    with drafting(max_num_batched_tokens=3) as llm:
        (one,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
        assert llm.core.queues.drafter.num_accepted_tokens
        assert max(record.num_tokens for record in llm.records) == 3


def with_a_guess(**params):
    """A core, and a request in it behind whose first output one guess is worth a look."""
    core = new_core(longest=200, max_num_batched_tokens=512, speculative_config=NGRAM)
    request = core.add(list(range(64)), SamplingParams(temperature=0, ignore_eos=True, **params))
    core.step()  # whatever it got is in its prompt
    assert request.num_computed_tokens + 1 == request.num_tokens
    return core, request


@pytest.mark.parametrize("unread", [0, 1])
def test_nothing_is_guessed_behind_a_token_that_nobody_has_read(unread):
    core, request = with_a_guess()
    request.num_unread_tokens = unread
    request.num_computed_tokens += unread
    schedule = Schedule({request: 1})
    core.queues.drafter.draft(schedule)
    assert bool(schedule.drafts) == (not unread)


@pytest.mark.parametrize("left", [0, 1])
def test_a_step_that_is_long_anyway_has_no_drafts(left):
    core, request = with_a_guess()
    assert core.config.step_tokens > MOST_TOKENS
    other = Request("other", (1,) * 300, SamplingParams(), (), 0, 1)
    schedule = Schedule({request: 1, other: MOST_TOKENS - 1 - left})
    core.queues.drafter.draft(schedule)
    assert bool(schedule.drafts) == left


@pytest.mark.parametrize("params", [{}, {"min_tokens": 1}])
def test_nobody_waits_for_tokens_behind_which_nothing_may_be_guessed(params):
    core, request = with_a_guess(**params)
    assert core.queues.drafter.wants([request]) == request.is_plain == (not params)


def test_where_blocks_are_short_a_drafts_slot_goes_back(monkeypatch):
    core = new_core(speculative_config=NGRAM)
    fit, wanted_most = core.cache.fit, [0]

    def short(name, computed, wanted, *source):
        if computed:
            wanted_most[0] = max(wanted, wanted_most[0])
        return fit(name, computed, min(wanted, 1) if computed else wanted, *source)

    monkeypatch.setattr(core.cache, "fit", short)
    core.add([1, 2, 3] * 4, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    while core.has_work:
        core.step()
        core.cache.check_integrity()
    assert wanted_most[0] > 1
    assert core.queues.drafter.counts == (0, 0, 0)


def test_a_plan_has_slots_for_drafts():
    with drafting(max_num_seqs=3) as llm:
        assert llm.plan.num_slots == 1 + 3 + 3
        assert "3 slots beside the seats' for drafts" in "; ".join(llm.plan.reasons)


# --- settings -------------------------------------------------------------------------------------


def test_what_is_left_out_has_its_default():
    config = EngineConfig(speculative_config={"num_speculative_tokens": 3})
    expected = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    }
    assert (
        config.speculative_config == json.loads(json.dumps(config.speculative_config)) == expected
    )
    for given, (least, most) in (
        ({"prompt_lookup_max": 1}, (1, 1)),
        ({"prompt_lookup_min": 6}, (6, 6)),
        ({"prompt_lookup_min": None, "prompt_lookup_max": 8}, (2, 8)),
    ):
        found = EngineConfig(speculative_config=given).speculative_config
        assert (found["prompt_lookup_min"], found["prompt_lookup_max"]) == (least, most)
    assert EngineConfig().speculative_config is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "eagle"}, 'method "ngram" and no model'),
        ({"model": "pfnet/plamo-2-1b"}, "drafts come from the text itself"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens is an integer, 1 to 32"),
        ({"num_speculative_tokens": True}, "num_speculative_tokens is an integer, 1 to 32"),
        ({"prompt_lookup_max": 99}, "prompt_lookup_max is an integer, 1 to 16"),
        ({"prompt_lookup_min": 5, "prompt_lookup_max": 3}, "prompt_lookup_min ≤ prompt_lookup_max"),
        ({"draft_tokens": 3}, "no 'draft_tokens'"),
        ("ngram", 'a mapping as {"method": "ngram"'),
    ],
)
def test_what_cannot_be_is_refused_by_name(given, said):
    with pytest.raises(EngineError, match="speculative_config must be a mapping") as refused:
        EngineConfig(speculative_config=given)
    assert said in str(refused.value)
    assert str(given)[:20] in str(refused.value)


def test_a_pipeline_has_no_drafts():
    with pytest.raises(PlamoRefError, match="leave it out, or pipeline_parallel_size=2"):
        EngineConfig(speculative_config=NGRAM, pipeline_parallel_size=2)
