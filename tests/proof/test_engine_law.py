"""The equivalence law: the tokens of a request depend on the request alone.

Invariant tested: whatever the company, the arrival times, the chunks, the scheduler, the size of
the memory and the preemptions, and whatever is found computed of its prompt, each request's logits
are the reference's within 1e-10 and its ids the same; memory is audited and the schedule checked
after every step.

HYPOTHESIS_PROFILE=nightly runs 10,000 scenarios.
"""

import random
from pathlib import Path

import pytest
from engines import CONFIGS, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.memory.prefix import PrefixCache
from plamo_ref.engine.scheduling.pace import Share
from plamo_ref.proof.drafting import DraftingScenario, draw_drafting_scenario
from plamo_ref.proof.hurry import draw_hurried_scenario
from plamo_ref.proof.lab import Scenario, draw_scenario
from plamo_ref.proof.law import run_scenario
from plamo_ref.proof.sharing import draw_sharing_scenario

GOLDEN = Path(__file__).parents[1] / "golden"
DRAWN = (draw_sharing_scenario, draw_scenario, draw_hurried_scenario)
SCENARIOS = max(240, settings.default.max_examples)


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[str, Scenario]:
    name = draw(st.sampled_from(list(CONFIGS)))
    drawn = draw(st.sampled_from(DRAWN))
    return name, drawn(lambda low, high: draw(st.integers(low, high)), CONFIGS[name])


@settings(max_examples=SCENARIOS)
@given(scenarios())
def test_the_tokens_of_a_request_depend_on_the_request_alone(drawn):
    name, scenario = drawn
    run_scenario(scenario, pair(name))


@st.composite
def drafting_scenarios(draw: st.DrawFn) -> tuple[str, DraftingScenario]:
    name = draw(st.sampled_from(list(CONFIGS)))
    drawn = draw_drafting_scenario(lambda low, high: draw(st.integers(low, high)), CONFIGS[name])
    return name, drawn


@settings(max_examples=SCENARIOS // 6)
@given(drafting_scenarios())
def test_with_drafts_they_are_the_same(drawn):
    name, scenario = drawn
    first = run_scenario(scenario.without_drafts, pair(name))
    run_scenario(DraftingScenario.of(scenario, first.requests), pair(name))


def test_in_drafting_scenarios_guesses_are_right_and_wrong():
    seen = dict.fromkeys(("right", "wrong", "drawn", "preempted", "interrupted", "overlapped"), 0)
    for seed in range(30):
        name = list(CONFIGS)[seed % len(CONFIGS)]
        scenario = draw_drafting_scenario(random.Random(seed).randint, CONFIGS[name])
        first = run_scenario(scenario.without_drafts, pair(name))
        result = run_scenario(DraftingScenario.of(scenario, first.requests), pair(name))
        right = sum(record.accepted for record in result.records)
        drafted = [
            share for record in result.records for share in record.scheduled if share.drafted
        ]
        warm = {r.request_id for r in result.requests if r.params.temperature}
        seen["right"] += right
        seen["wrong"] += sum(share.drafted for share in drafted) - right
        seen["drawn"] += sum(share.request_id in warm for share in drafted)
        seen["preempted"] += bool(drafted) and result.num_preemptions
        seen["interrupted"] += bool(drafted) and len(result.interrupted_at)
        seen["overlapped"] += len(drafted) if scenario.engine.overlap else 0
    assert min(seen.values()) >= 3, seen


def test_the_scenarios_are_worth_something():
    """Among them are preemptions for want of memory, cut prompts, mixed steps, aborts, waiting."""
    seen = dict.fromkeys(("preempted", "cut", "mixed", "aborted", "waited", "cut short"), 0)
    for seed in range(40):
        name = list(CONFIGS)[seed % len(CONFIGS)]
        scenario = draw_scenario(random.Random(seed).randint, CONFIGS[name])
        result = run_scenario(scenario, pair(name))
        shares = [share for record in result.records for share in record.scheduled]
        kinds = [{share.kind for share in record.scheduled} for record in result.records]
        seen["preempted"] += result.num_preemptions
        seen["cut"] += sum(s.kind == "prefill" and not s.sampled for s in shares)
        seen["mixed"] += sum("decode" in kind and len(kind) > 1 for kind in kinds)
        seen["aborted"] += sum(r.finish_reason == "abort" for r in result.requests)
        seen["waited"] += sum(record.num_waiting > 0 for record in result.records)
        seen["cut short"] += sum(
            r.finish_reason == "length" and len(r.output_ids) < r.params.max_tokens
            for r in result.requests
        )
    assert min(seen.values()) >= 3, seen


def test_in_scenarios_that_share_much_is_found_and_much_is_given_up(monkeypatch):
    """Whole prompts, turns, junctions in the middle; and every reason to find no more."""
    inside, expose = [], PrefixCache.expose

    def look(prefix, request, end, exposed):
        expose(prefix, request, end, exposed)
        inside.append(exposed)

    monkeypatch.setattr(PrefixCache, "expose", look)
    reasons, hits, tokens, again, overlapped = set(), 0, 0, 0, 0
    for seed in range(48):
        name = list(CONFIGS)[seed % len(CONFIGS)]
        scenario = draw_sharing_scenario(random.Random(seed).randint, CONFIGS[name])
        result = run_scenario(scenario, pair(name))
        began = set()
        for request, count, why in (found for record in result.records for found in record.found):
            reasons.add(why)
            hits, tokens = hits + (count > 0), tokens + count
            again += request in began and count > 0
            overlapped += scenario.engine.overlap and count > 0
            began.add(request)
    no_more = {"", "off", "prompt logprobs", "state evicted", "no state there", "salt"}
    assert reasons == no_more | {"first seen"}
    assert min(hits / 5, tokens / 50, again, overlapped) >= 3, (hits, tokens, again, overlapped)
    steps = {id(photographs): len(photographs) for photographs in inside}
    taken = list(steps.values())
    assert sum(taken) >= 30
    assert max(taken) >= 2


def test_in_hurried_scenarios_prompts_are_cut_for_want_of_time(monkeypatch):
    cut, asked = dict.fromkeys(("all of it", "a part", "nothing"), 0), Share.__call__

    def ask(share, request, left, budget):
        granted = asked(share, request, left, budget)
        wanted = min(left, budget)
        how = "nothing" if not granted else "a part" if granted < wanted else "all of it"
        cut[how] += not request.is_decoding
        return granted

    monkeypatch.setattr(Share, "__call__", ask)
    for seed in range(30):
        name = list(CONFIGS)[seed % len(CONFIGS)]
        scenario = draw_hurried_scenario(random.Random(seed).randint, CONFIGS[name])
        run_scenario(scenario, pair(name))
    assert min(cut.values()) >= 10, cut


# --- the same in float32, against independent implementations -------------------------------------


@pytest.mark.parametrize("case", sorted(p.name for p in GOLDEN.glob("c*")))
@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"max_num_batched_tokens": 7, "block_size": 3},
        {"scheduler": "v0"},
        {"scheduler": "v0", "chunk_size": 5, "block_size": 5, "max_num_seqs": 2},
    ],
    ids=["v1", "v1, 7 tokens a step", "v0", "v0 in chunks of 5"],
)
def test_golden_greedy_ids_are_exact_in_any_company(case, engine):
    expected = load_file(GOLDEN / case / "expected.safetensors")
    prompt, answer = expected["prompt_ids"].tolist(), expected["greedy_ids"].tolist()
    llm = LLM(GOLDEN / case, dtype="float32", device="cpu", memory_bytes=1 << 27, **engine)
    golden = SamplingParams(temperature=0, max_tokens=len(answer), ignore_eos=True)
    other = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
    results = llm.generate(
        [prompt[:9], prompt, prompt[5:40], prompt], [other, golden, other, golden], use_tqdm=False
    )
    assert [list(results[i].outputs[0].token_ids) for i in (1, 3)] == [answer, answer]
    llm.core.cache.check_integrity()
