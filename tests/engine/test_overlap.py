"""Overlapped scheduling: a step is launched before the last one's tokens are read.

Invariant tested: nobody can tell from the tokens. That the logits are the reference's as well, the
traces of test_engine_law.py show, half of which overlap.
"""

import pytest
from engines import CONFIGS, new_core

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.endings import needs_host
from plamo_ref.engine.request import Request
from plamo_ref.proof.lab import LabGuide

PROMPTS = ["吾輩は", "To be, or", "三四郎は" * 9, "x"]


def texts(overlap: bool, **settings: object) -> list[tuple[str, str | None]]:
    llm = LLM("tiny", device="cpu", dtype="float64", overlap=overlap, **settings)
    params = [
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(temperature=0.9, seed=3, max_tokens=9, stop=["e"]),
        SamplingParams(temperature=0.7, seed=4, max_tokens=9, logprobs=2, presence_penalty=0.5),
        SamplingParams(temperature=1.0, seed=5, max_tokens=1, min_tokens=1),
    ]
    outputs = [o.outputs[0] for o in llm.generate(PROMPTS, params, use_tqdm=False)]
    llm.core.cache.check_integrity()
    assert not llm.core.requests
    return [(o.text, o.finish_reason) for o in outputs]


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 5}, {"max_num_seqs": 2}])
def test_the_same_texts_with_and_without(settings):
    assert texts(True, **settings) == texts(False, **settings)


def test_the_first_step_gives_nobody_a_token_and_the_last_is_landed():
    core = new_core(CONFIGS["mamba and sliding"], overlap=True)
    request = core.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    assert core.step() == []
    assert core.in_flight is not None
    assert core.step() == [request]
    assert core.step() == [request]
    assert (request.status, len(request.output_ids), core.in_flight) == ("finished", 2, None)


def test_a_stop_token_ends_a_request_whose_next_step_is_under_way():
    core = new_core(CONFIGS["mamba and sliding"], overlap=True)
    plain = new_core(CONFIGS["mamba and sliding"], overlap=False)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    plain.add([1, 2, 3], params)
    second = [r.output_ids[-1] for _ in range(2) for r in plain.step()][-1]
    request = core.add([1, 2, 3], params, stop_ids=())
    request.stop_ids = frozenset({second})
    while core.has_work:
        core.step()
    assert request.finish_reason == "stop"
    assert request.output_ids[-1] == second
    core.cache.check_integrity()
    assert not core.cache.holdings


def test_an_abort_in_flight_gives_no_token_and_leaves_nothing():
    core = new_core(CONFIGS["mamba and sliding"], overlap=True)
    request = core.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    core.step()
    core.finish(request.request_id, "abort")
    assert not core.cache.holdings
    assert core.step() == []
    assert request.output_ids == []
    again = core.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=1))
    while core.has_work:
        core.step()
    assert len(again.output_ids) == 1


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"logit_bias": {3: 1.0}, "min_tokens": 2, "stop_token_ids": [4]}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"repetition_penalty": 0.9}, True),
        ({"presence_penalty": -0.5}, True),
        ({"frequency_penalty": 0.5}, True),
        ({"logits_processors": [lambda ids, logits: logits]}, True),
        ({"logprobs": 0}, True),
        ({"prompt_logprobs": 0}, True),
    ],
)
def test_what_a_step_waits_for(asked, waits):
    """Each alone: what looks back at the tokens, and what is read from logits afterwards."""
    request = Request("r", (1, 2, 3), SamplingParams(**asked), (), 0, 0)
    assert needs_host(request) is waits
    request.prompt_logprobs = [None, None]  # type: ignore[list-item]
    assert needs_host(request) is (waits and "prompt_logprobs" not in asked)
    guide = LabGuide(1, 5, 64)
    assert needs_host(Request("g", (1, 2, 3), SamplingParams(**asked), (), 0, 0, guide))


@pytest.mark.parametrize("name", ["repetition", "presence", "frequency"])
def test_a_penalty_alone_sees_the_token_before(name):
    """Of a few tokens that are far ahead, each costs the others their place for a while."""
    ahead = dict.fromkeys((5, 6, 7, 8), 30.0)
    asked = {"temperature": 0, "max_tokens": 12, "logit_bias": ahead, f"{name}_penalty": 2.0}
    outputs = []
    for overlap in (False, True):
        core = new_core(overlap=overlap)
        request = core.add([1, 2, 3], SamplingParams(**asked))  # type: ignore[arg-type]
        while core.has_work:
            core.step()
        outputs.append(request.output_ids)
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) > 2
