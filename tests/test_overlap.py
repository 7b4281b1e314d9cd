"""Overlapped scheduling: a step is launched before the last one's tokens are read.

Invariant tested: nobody can tell from the tokens. That the logits are the reference's as well, the
traces of test_engine_law.py show, half of which overlap.
"""

import pytest
from engines import CONFIGS, new_core

from plamo_ref import LLM, SamplingParams

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
