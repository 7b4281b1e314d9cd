"""`LLM`: prompts in, text out.

Invariant tested: whatever happens during a call, its results are in order and the engine is clean
after it.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engines import GREEDY

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine import llm as llm_module
from plamo_ref.engine.completion import Completion
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.outputs import StreamPiece
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.hub import find
from plamo_ref.intake.prompts import PromptError
from plamo_ref.reference import Plamo2Reference, generate_ids
from plamo_ref.sampling import SamplingError
from plamo_ref.text.stream import TextStream

PROMPTS = ["吾輩は", "To be", "\n\n", "メロスは激怒した。"]


@pytest.fixture(scope="module")
def shared() -> LLM:
    # In float64, for which alone equality in any company is promised.
    settings = {"max_num_seqs": 3, "max_num_batched_tokens": 32, "memory_bytes": 8_000_000}
    return LLM("tiny", device="cpu", dtype="float64", **settings)


@pytest.fixture
def llm(shared: LLM):
    """The shared engine, which has to be clean before and after each test."""
    assert_clean(shared)
    yield shared
    assert_clean(shared)


def assert_clean(llm: LLM) -> None:
    core = llm.core
    core.cache.check_integrity()
    assert not core.has_work
    assert not core.queues.running
    assert not core.queues.waiting
    assert not core.cache.holdings
    assert core.cache.slots.num_used == 0
    assert all(pool.num_used == 0 for pool in core.cache.blocks.values())


def texts(llm: LLM, prompts, params=GREEDY) -> list[str]:
    return [r.outputs[0].text for r in llm.generate(prompts, params, use_tqdm=False)]


def test_prefix_caching_is_on_where_nothing_says_otherwise_and_a_gpu_is(llm):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for given, on in ((None, [True, False]), (True, [True, True]), (False, [False, False])):
        config = EngineConfig(enable_prefix_caching=given)
        assert [config.resolve_prefix_caching(device) for device in (gpu, cpu)] == on
    assert llm.core.config.enable_prefix_caching is False


# --- generate ----------------------------------------------------------------------------------


def test_results_are_in_the_order_of_the_prompts_and_those_of_each_alone(llm):
    """More prompts than seats, and each needs another number of tokens."""
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (20, 3, 11, 7)]
    results = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [r.prompt for r in results] == PROMPTS
    assert [len(r.outputs[0].token_ids) for r in results] == [20, 3, 11, 7]
    for prompt, one, result in zip(PROMPTS, params, results, strict=True):
        assert texts(llm, prompt, one) == [result.outputs[0].text]


def test_the_ids_are_those_of_the_reference(llm):
    model = Plamo2Reference.from_pretrained("tiny")
    params = SamplingParams(seed=5, temperature=0.8, top_p=0.9, max_tokens=15)
    for result in llm.generate(PROMPTS, params, use_tqdm=False):
        ids = generate_ids(model, result.prompt_token_ids, params, llm.stop_token_ids)
        assert result.outputs[0].token_ids == tuple(ids)


def test_text_is_the_decoded_ids(llm):
    for result in llm.generate(PROMPTS, GREEDY, use_tqdm=False):
        output = result.outputs[0]
        assert output.text == llm.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert (output.finish_reason, output.stop_reason) == ("length", None)
        assert result.finished


def test_token_ids_are_a_prompt_too(llm):
    ids = llm.tokenizer.encode(PROMPTS[0])
    (one,) = llm.generate(ids, GREEDY, use_tqdm=False)  # a flat list is one prompt
    assert one.prompt is None
    assert one.prompt_token_ids == tuple(ids)
    assert texts(llm, [ids, PROMPTS[0]]) == [one.outputs[0].text] * 2


def test_no_prompts_no_results(llm):
    assert llm.generate([], GREEDY, use_tqdm=False) == []
    assert list(llm.stream([], GREEDY)) == []


def test_without_parameters_the_defaults_hold(llm):
    (result,) = llm.generate("吾輩は", use_tqdm=False)
    assert len(result.outputs[0].token_ids) == SamplingParams().max_tokens


def test_requests_without_a_seed_do_not_share_their_random_numbers(llm):
    params = SamplingParams(max_tokens=12, temperature=2)
    assert len(set(texts(llm, ["吾輩は"] * 3, params))) == 3


def test_several_completions_of_a_prompt_differ_and_the_first_is_the_only_one_of_one(llm):
    several = SamplingParams(n=3, seed=4, max_tokens=8, temperature=1.5)
    (result,) = llm.generate("吾輩は", several, use_tqdm=False)
    assert [output.index for output in result.outputs] == [0, 1, 2]
    assert len({output.token_ids for output in result.outputs}) == 3
    one = SamplingParams(seed=4, max_tokens=8, temperature=1.5)
    assert texts(llm, "吾輩は", one) == [result.outputs[0].text]


def test_times_are_monotone(llm):
    for result in llm.generate(PROMPTS, GREEDY, use_tqdm=False):
        times = result.metrics
        assert times.queued <= times.first_token <= times.finished


def test_a_result_is_a_snapshot(llm):
    (first,) = llm.generate("吾輩は", GREEDY, use_tqdm=False)
    before = (first.outputs, first.metrics.finished)
    llm.generate("吾輩は", GREEDY, use_tqdm=False)
    assert (first.outputs, first.metrics.finished) == before


# --- how it ends -------------------------------------------------------------------------------


def test_a_stop_string_across_tokens_ends_the_text(llm):
    (free,) = texts(llm, "吾輩は", SamplingParams(temperature=0, max_tokens=12))
    stop = free[3:6]
    params = SamplingParams(temperature=0, max_tokens=12, stop=stop)
    (result,) = llm.generate("吾輩は", params, use_tqdm=False)
    output = result.outputs[0]
    assert output.text == free[: free.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert len(output.token_ids) < 12


def test_a_stop_string_in_the_last_token_allowed_is_a_stop(llm):
    (free,) = llm.generate("吾輩は", SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)
    stop = llm.tokenizer.decode(free.outputs[0].token_ids[-1:])
    params = SamplingParams(temperature=0, max_tokens=5, stop=free.outputs[0].text[-len(stop) :])
    (result,) = llm.generate("吾輩は", params, use_tqdm=False)
    assert result.outputs[0].finish_reason == "stop"
    assert result.outputs[0].stop_reason == params.stop[0]


def test_a_stop_token_ends_the_request_and_has_no_text(llm):
    (free,) = llm.generate("吾輩は", GREEDY, use_tqdm=False)
    ids = free.outputs[0].token_ids
    stop = ids[-1]
    first = ids.index(stop)
    params = SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[stop])
    (result,) = llm.generate("吾輩は", params, use_tqdm=False)
    output = result.outputs[0]
    assert output.token_ids == ids[: first + 1]
    assert output.text == llm.tokenizer.decode(ids[:first])
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


@pytest.mark.parametrize("skip", [True, False])
def test_the_text_of_a_stop_token_is_included_when_asked_for(llm, skip):
    (free,) = llm.generate("吾輩は", GREEDY, use_tqdm=False)
    ids = free.outputs[0].token_ids
    asked = {"include_stop_str_in_output": True, "skip_special_tokens": skip, "temperature": 0}
    params = [
        SamplingParams(stop_token_ids=[ids[2]], **asked),
        SamplingParams(logit_bias={llm.stop_token_ids[0]: 1000.0}, **asked),
    ]
    own, eos = (r.outputs[0] for r in llm.generate(["吾輩は"] * 2, params, use_tqdm=False))
    assert (own.text, own.stop_reason) == (llm.tokenizer.decode(ids[:3]), ids[2])
    end = llm.tokenizer.decode(llm.stop_token_ids[:1])
    assert (eos.text, eos.finish_reason) == ("" if skip else end, "stop")
    assert end, "the token has a text of its own"
    joined = ["", ""]
    for piece in llm.stream(["吾輩は"] * 2, params):
        joined[piece.index] += piece.text
    assert joined == [own.text, eos.text]


def test_a_stop_string_across_the_border_of_min_tokens_is_found(llm):
    free = llm.generate("吾輩は", SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    ids = free[0].outputs[0].token_ids
    stop = llm.tokenizer.decode(ids[1:3])
    for least in range(4):
        params = SamplingParams(temperature=0, max_tokens=12, stop=stop, min_tokens=least)
        (result,) = llm.generate("吾輩は", params, use_tqdm=False)
        stopped = result.outputs[0].finish_reason == "stop"
        assert stopped == (least < 3)
        if stopped:
            assert result.outputs[0].text == llm.tokenizer.decode(ids[:1])


def test_without_a_largest_number_of_tokens_a_text_goes_on_to_the_longest_length():
    short = LLM("tiny", device="cpu", max_model_len=20, memory_bytes=2_000_000)
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    (result,) = short.generate("吾輩は", params, use_tqdm=False)
    assert len(result.prompt_token_ids) + len(result.outputs[0].token_ids) == 20
    assert result.outputs[0].finish_reason == "length"


def test_a_request_ends_where_the_longest_length_is_reached():
    short = LLM("tiny", device="cpu", max_model_len=12, memory_bytes=2_000_000)
    ids = short.tokenizer.encode("吾輩は猫である")
    (result,) = short.generate(ids, SamplingParams(temperature=0, max_tokens=99), use_tqdm=False)
    assert len(ids) + len(result.outputs[0].token_ids) == 12
    assert result.outputs[0].finish_reason == "length"
    assert_clean(short)


def test_the_embedded_model_ends_where_it_was_measured():
    folder = find("tiny")
    measured = json.loads((folder / "training.json").read_text(encoding="utf-8"))["context"]
    limit = LLM("tiny", device="cpu").core.max_model_len
    assert limit == measured[-1]["positions"][1] == 8192
    assert f"{limit:,} tokens" in (folder / "README.md").read_text(encoding="utf-8")


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "params", "reason"),
    [
        (["吾輩は", []], GREEDY, "the prompt has no tokens"),
        (["吾輩は", [1, 99999]], GREEDY, "prompt token 1 is 99999"),
        (["吾輩は", [5] * 500_000], GREEDY, "the prompt has 500,000 tokens"),
        (["吾輩は"], [GREEDY, GREEDY], "1 prompts but 2 sampling parameters"),
        (["吾輩は"], SamplingParams(stop_token_ids=[99999]), "stop_token_ids names token 99999"),
        (["吾輩は"], SamplingParams(logit_bias={5120: 1.0}), "logit_bias names token 5120"),
        (["吾輩は", b"x"], GREEDY, "prompt 1: b'x' is bytes"),
        (["吾輩は"], [{"n": 1}], "is no SamplingParams"),
    ],
)
@pytest.mark.parametrize("call", ["generate", "stream"])
def test_a_refused_prompt_starts_nothing(llm, call, prompts, params, reason):
    steps = llm.core.num_steps
    with pytest.raises((EngineError, PromptError), match=reason):
        getattr(llm, call)(prompts, params)
    assert_clean(llm)
    assert llm.core.num_steps == steps


@pytest.mark.parametrize("ids", [[1, True], [1, 5.0], [1, "5"], [1, -1]])
def test_the_core_itself_refuses_ids_of_another_type(llm, ids):
    """Who comes past `LLM` must not be able to end a step for everybody."""
    with pytest.raises(EngineError, match="request odd: prompt token 1 is "):
        llm.core.add(ids, GREEDY, request_id="odd")
    with pytest.raises(EngineError, match=r"request odd: {'n': 1} is no SamplingParams"):
        llm.core.add([1, 5], {"n": 1}, request_id="odd")


def test_arrays_and_generators_are_prompts_and_their_results_are_those_of_lists(llm):
    ids = llm.tokenizer.encode(PROMPTS[0])
    for prompts in ([ids], np.array(ids), torch.tensor([ids]), iter([PROMPTS[0]])):
        assert texts(llm, prompts) == texts(llm, [ids])
    assert texts(llm, (p for p in PROMPTS)) == texts(llm, PROMPTS)
    both = {"prompt": "shown", "prompt_token_ids": ids}
    (result,) = llm.generate(both, GREEDY, use_tqdm=False)
    assert (result.prompt, result.prompt_token_ids) == ("shown", tuple(ids))


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(EngineError, match="no_such_setting"):
        LLM("tiny", no_such_setting=1)


@pytest.mark.parametrize(("stop", "name"), [("never there", "push"), (None, "take_all")])
def test_an_error_in_the_middle_leaves_the_engine_clean(llm, monkeypatch, stop, name):
    """Where a stop string may end a text, it is made as it comes, else at its end."""
    healthy, calls = getattr(TextStream, name), []

    def broken(stream: TextStream, *args: Any, **how: Any) -> Any:
        calls.append(name)
        if len(calls) == len(PROMPTS):
            raise RuntimeError("half way")
        return healthy(stream, *args, **how)

    monkeypatch.setattr(TextStream, name, broken)
    params = SamplingParams(temperature=0, max_tokens=30, stop=stop)
    with pytest.raises(RuntimeError, match="half way"):
        llm.generate(PROMPTS, params, use_tqdm=False)
    assert_clean(llm)


def test_without_stop_strings_a_text_is_made_once_at_its_end_and_nobody_gets_pieces(
    llm, monkeypatch
):
    made, taken = [], Counter[str]()
    for name in ("push", "take_all"):
        monkeypatch.setattr(TextStream, name, _counted(getattr(TextStream, name), name, taken))
    monkeypatch.setattr(
        llm_module, "Completion", lambda *a: made.append(Completion(*a)) or made[-1]
    )
    params = SamplingParams(temperature=0, max_tokens=30)
    at_once = llm.generate(PROMPTS, params, use_tqdm=False)
    assert (taken, [c.pieces for c in made]) == ({"take_all": len(PROMPTS)}, [[]] * len(PROMPTS))
    one_by_one = llm.generate(PROMPTS, replace(params, stop="never there"), use_tqdm=False)
    assert taken["push"] > len(PROMPTS)
    for mine, other in zip(at_once, one_by_one, strict=True):
        assert mine.outputs[0] == other.outputs[0]
    assert not any(c.pieces for c in made)


def _counted(work: Callable[..., Any], name: str, calls: Counter[str]) -> Callable[..., Any]:
    def counted(*args: Any, **how: Any) -> Any:
        calls[name] += 1
        return work(*args, **how)

    return counted


# --- stream ------------------------------------------------------------------------------------


def collected(pieces: list[StreamPiece], count: int) -> list[list[StreamPiece]]:
    return [[piece for piece in pieces if piece.index == i] for i in range(count)]


def test_stream_pieces_join_to_the_text_of_generate(llm):
    params = SamplingParams(temperature=0, max_tokens=10, stop="の")
    results = llm.generate(PROMPTS, params, use_tqdm=False)
    pieces = list(llm.stream(PROMPTS, params))
    for mine, result in zip(collected(pieces, len(PROMPTS)), results, strict=True):
        output = result.outputs[0]
        assert "".join(piece.text for piece in mine) == output.text
        assert tuple(piece.token_id for piece in mine) == output.token_ids
        assert [piece.finish_reason for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == output.finish_reason


def test_leaving_a_stream_early_leaves_the_engine_clean(llm):
    for number, _ in enumerate(llm.stream(PROMPTS, GREEDY)):
        if number == 2:
            break
    assert_clean(llm)


def test_a_stream_that_nobody_reads_leaves_the_engine_clean(llm):
    pieces = llm.stream(PROMPTS, GREEDY)
    assert llm.core.has_work
    del pieces
    assert_clean(llm)


def test_abort_during_a_stream_ends_one_request_and_no_other(llm):
    free = texts(llm, PROMPTS[:2])
    pieces = []
    for piece in llm.stream(PROMPTS[:2], GREEDY):
        pieces.append(piece)
        if piece.index == 0 and sum(p.index == 0 for p in pieces) == 3:
            llm.abort(piece.request_id)
            llm.abort(piece.request_id)  # a second time is fine
    first, second = collected(pieces, 2)
    assert first[-1].finish_reason == "abort"
    assert first[-1].token_id is None
    assert len(first) == 4
    assert free[0].startswith("".join(piece.text for piece in first))
    assert "".join(piece.text for piece in second) == free[1]


def test_abort_of_somebody_unknown_is_ignored(llm):
    llm.abort("nobody")


def test_abort_of_a_waiting_request(llm):
    """There are three seats and four prompts."""
    pieces = []
    for piece in llm.stream(PROMPTS, GREEDY):
        if not pieces:
            (waiting,) = llm.core.queues.waiting
            llm.abort(waiting.request_id)
        pieces.append(piece)
    last = collected(pieces, 4)[3]
    assert [(p.token_id, p.text, p.finish_reason) for p in last] == [(None, "", "abort")]


def test_a_stream_inside_a_stream_and_a_generate_inside_both(llm):
    free = texts(llm, PROMPTS[:3])
    outer, inner, innermost = [], [], []
    for piece in llm.stream(PROMPTS[0], GREEDY):
        outer.append(piece.text)
        if len(outer) == 2:
            for other in llm.stream(PROMPTS[1], GREEDY):
                inner.append(other.text)
                if len(inner) == 3:
                    innermost = texts(llm, PROMPTS[2])
    assert ["".join(outer), "".join(inner), *innermost] == free


def test_two_streams_can_be_read_in_turns(llm):
    free = texts(llm, PROMPTS[:2])
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    turns = [(a.text, b.text) for a, b in zip(*streams, strict=True)]
    assert ["".join(side) for side in zip(*turns, strict=True)] == free


# --- the rest ----------------------------------------------------------------------------------


def test_records_tell_of_every_step_if_asked():
    llm = LLM("tiny", device="cpu", record=True, memory_bytes=2_000_000)
    llm.generate(["吾輩は", "To be"], GREEDY, use_tqdm=False)
    assert [record.step for record in llm.records] == list(range(GREEDY.max_tokens))
    assert llm.records[0].admitted == ("0", "1")
    assert {share.kind for share in llm.records[0].scheduled} == {"prefill"}
    assert {share.kind for share in llm.records[1].scheduled} == {"decode"}
    assert llm.records[-1].finished == ("0", "1")
    assert all(record.total_seconds >= record.schedule_seconds for record in llm.records)
    assert llm.records[3].slots_used == 2


@pytest.mark.parametrize("engine", [{"scheduler": "v0"}, {"block_size": 5}, {"max_num_seqs": 1}])
def test_how_the_engine_runs_does_not_change_what_it_says(llm, engine):
    other = LLM("tiny", device="cpu", dtype="float64", memory_bytes=6_000_000, **engine)
    params = SamplingParams(seed=1, max_tokens=10)
    assert texts(other, PROMPTS, params) == texts(llm, PROMPTS, params)


def test_every_refusal_is_a_plamo_ref_error():
    assert issubclass(EngineError, PlamoRefError)
    assert issubclass(SamplingError, PlamoRefError)
