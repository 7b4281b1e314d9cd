"""A step is a transaction: whatever is raised in one, all others' tokens are what they would be.

Invariant tested: for the core at every point of a step (test_engine_law.py draws such points into
its traces), and for the texts of an `LLM`, whichever call the error comes in; memory is whole,
nobody waits for ever, and nobody runs for whom nobody waits.
"""

import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from engines import new_core
from noise import assert_clean, noise_llm

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine import core as core_module
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.engine.outputs import StreamPiece
from plamo_ref.engine.request import Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduling.scheduler import Queues
from plamo_ref.grammar.pool import GuidePool
from plamo_ref.proof.audits import check_all_free
from plamo_ref.proof.interrupts import interrupted
from plamo_ref.proof.lab import LabGuide
from plamo_ref.sampling import GuidedError, GuidedParams
from plamo_ref.text.stream import TextStream

# --- the core: at every point of a step -----------------------------------------------------------


def crowd(core: EngineCore) -> list[Request]:
    """Four requests, of which three are in the same step at any time; half of them look back."""
    guided = GuidedParams(json_object=True)
    asked = [
        SamplingParams(temperature=0, max_tokens=9),
        SamplingParams(seed=1, max_tokens=8, logprobs=2, prompt_logprobs=1, frequency_penalty=0.7),
        SamplingParams(seed=2, max_tokens=9, guided=guided, temperature=1.5),
        SamplingParams(seed=3, max_tokens=4),
    ]
    guides = [None, None, LabGuide(7, 8, 64), None]
    prompts = ([1, 2, 3], list(range(9)), [5] * 4, [7, 8])
    return [
        core.add(prompt, params, guide=guide)
        for prompt, params, guide in zip(prompts, asked, guides, strict=True)
    ]


def new_crowd(more_blocks: int = 2, **engine: object) -> tuple[EngineCore, list[Request]]:
    """Without more memory than that, some of them are preempted."""
    limits = {"seats": 3, "longest": 24, "max_num_batched_tokens": 8}
    core = new_core(more_blocks=more_blocks, **limits, **engine)  # type: ignore[arg-type]
    return core, crowd(core)


def to_the_end(core: EngineCore, most: int = 400) -> None:
    for _ in range(most):
        if not core.has_work:
            check_all_free(core)
            return
        core.step()
        core.cache.check_integrity()
    raise AssertionError("somebody waits for ever")


def fates(requests: Sequence[Request]) -> list[Any]:
    return [
        (r.output_ids, r.finish_reason, [s.token_id for s in r.logprobs], len(r.prompt_logprobs))
        for r in requests
    ]


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    """What becomes of the crowd if nothing happens; found while everything is whole."""
    core, requests = new_crowd()
    to_the_end(core)
    return fates(requests)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("scheduler", [{"scheduler": "v1"}, {"scheduler": "v0", "chunk_size": 5}])
def test_an_interrupt_at_any_point_of_a_step_changes_nobodys_tokens(
    undisturbed, scheduler, overlap
):
    where = set()
    for point in range(0, 1300, 67):
        core, requests = new_crowd(overlap=overlap, **scheduler)
        steps = 2 + point % 5
        for _ in range(steps):
            core.step()
        error = (KeyboardInterrupt, MemoryError)[point % 2]("planned")
        with interrupted(point, error) as interrupter, suppress(type(error)):
            core.step()
        core.cache.check_integrity()
        to_the_end(core)
        assert fates(requests) == undisturbed, interrupter.where
        where.add(interrupter.where)
    assert len(where) > 9


def test_a_recovery_that_is_interrupted_is_done_again(undisturbed):
    for point in range(0, 400, 23):
        core, requests = new_crowd()
        for _ in range(4):
            core.step()
        core._torn = True
        with interrupted(point) as interrupter, suppress(KeyboardInterrupt):
            core.step()
        to_the_end(core)
        assert fates(requests) == undisturbed, interrupter.where


def test_a_second_interrupt_while_the_first_is_mended(undisturbed, monkeypatch):
    """As from an impatient thumb: the mark stays, and the next call mends."""
    core, requests = new_crowd()
    core.step()
    healthy = core_module.rebuild

    def impatient(*args: Any) -> Any:
        core.queues.clear()
        raise KeyboardInterrupt

    monkeypatch.setattr(core_module, "rebuild", impatient)
    with interrupted(300), pytest.raises(KeyboardInterrupt):
        core.step()
    monkeypatch.setattr(core_module, "rebuild", healthy)
    core.finish("nobody")  # whichever method comes next
    core.cache.check_integrity()
    assert len(core.queues.waiting) == len(core.requests) == 4
    to_the_end(core)
    assert fates(requests) == undisturbed


def test_who_leaves_before_an_interrupted_token_has_no_log_probability_of_it(monkeypatch):
    core = new_core()
    request = core.add([1, 2, 3], SamplingParams(max_tokens=9, logprobs=1))
    for _ in range(2):
        core.step()
    with monkeypatch.context() as patched:
        patched.setattr(Request, "append", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            core.step()
    assert len(request.logprobs) == len(request.output_ids) + 1  # it would be written over
    core.finish(request.request_id)
    assert len(request.logprobs) == len(request.output_ids) == 2


PLACES = [
    (HybridCache, "allocate"),
    (core_module, "build_batch"),
    (ModelRunner, "run"),
    (core_module, "choose_on_device"),
    (core_module, "read_tokens"),
    (core_module, "finish_reason"),
]


MOVES = [
    *[(Request, name) for name in ("append", "finish", "reset")],
    *[(Pool, name) for name in ("take", "give_back")],
    *[(HybridCache, name) for name in ("allocate", "release")],
    *[(Queues, name) for name in ("admit", "grant", "preempt", "remove")],
    *[(LabGuide, name) for name in ("mask", "accept")],
    (EngineCore, "_end"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), MOVES, ids=[name for _, name in MOVES])
def test_an_interrupt_beside_every_move(undisturbed, monkeypatch, owner, name, after):
    """Each third time that it is made; every other neighbour of the first kind is overlapped."""
    healthy, calls = getattr(owner, name), []

    def disturbed(*args: Any) -> Any:
        calls.append(name)
        if after:
            result = healthy(*args)
        if len(calls) % 3 == 2 and len(calls) < 30:
            raise KeyboardInterrupt
        return result if after else healthy(*args)

    monkeypatch.setattr(owner, name, disturbed)
    for overlap in (False, True):
        core, requests = new_crowd(overlap=overlap)
        hits = 0
        while core.has_work:
            try:
                core.step()
            except KeyboardInterrupt:
                hits += 1
            core.cache.check_integrity()
        check_all_free(core)
        assert fates(requests) == undisturbed
        assert hits
        calls.clear()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_too_little_memory_is_raised_every_time_and_is_nobodys_fault(
    undisturbed, monkeypatch, owner, name, error
):
    core, requests = new_crowd()
    for _ in range(3):
        core.step()

    def full(*_: Any) -> None:
        raise error("no room")

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        for _ in range(3):
            with pytest.raises(error, match="no room"):
                core.step()
            core.cache.check_integrity()
    assert not any(request.error for request in requests)
    to_the_end(core)
    assert fates(requests) == undisturbed


def test_an_observer_that_fails_is_heard_and_changes_nothing(undisturbed):
    core, requests = new_crowd(more_blocks=50)
    told = []

    def observer(record: Any, landed: Sequence[Request], _: Any) -> None:
        told.append(record.step)
        if record.step == 3:
            raise ZeroDivisionError("an observer's own")

    core.observers.append(observer)
    seen: dict[Request, int] = defaultdict(int)
    while core.has_work:
        try:
            for request in core.step():
                seen[request] = len(request.output_ids)
        except ZeroDivisionError:
            core.cache.check_integrity()
    assert told == list(range(len(told)))
    assert fates(requests) == undisturbed
    assert not any(request.num_preemptions for request in requests)  # nothing was done again
    assert seen == {request: len(request.output_ids) for request in requests}


# --- whose error it is ----------------------------------------------------------------------------


def ends_alone(
    core: EngineCore,
    requests: Sequence[Request],
    undisturbed: Sequence[Any],
    guilty: int,
    kind: type,
) -> None:
    moved = set()
    while core.has_work:
        moved |= {r for r in core.step() if r.error is not None}
        core.cache.check_integrity()
    check_all_free(core)
    assert moved == {requests[guilty]}
    assert requests[guilty].finish_reason == "error"
    assert isinstance(requests[guilty].error, kind)
    others = [i for i in range(4) if i != guilty]
    assert [fates(requests)[i] for i in others] == [undisturbed[i] for i in others]
    assert not any(r.num_preemptions for r in requests)  # nothing was done again


@pytest.mark.parametrize("method", ["mask", "accept"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_grammar_that_fails_ends_its_own_request(undisturbed, monkeypatch, method, overlap):
    core, requests = new_crowd(overlap=overlap, more_blocks=50)
    healthy = getattr(LabGuide, method)

    def failing(guide: LabGuide, *args: Any) -> Any:
        if len(guide._accepted) == 2:
            raise GuidedError("the grammar broke down")
        return healthy(guide, *args)

    monkeypatch.setattr(LabGuide, method, failing)
    ends_alone(core, requests, undisturbed, 2, GuidedError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", "five"),
        ("temperature", None),
        ("seed", "a"),
        ("logprobs", "b"),
        ("logits_processors", [lambda ids, logits: logits / 0]),
    ],
)
def test_a_parameter_that_breaks_the_choice_ends_its_own_request(undisturbed, field, value):
    """`SamplingParams` refuses it; here it comes nevertheless."""
    core, requests = new_crowd(more_blocks=50)
    core.step()
    guilty = requests[1]
    if field == "seed":
        guilty.seed = value
    else:
        object.__setattr__(guilty.params, field, value)
    ends_alone(core, requests, undisturbed, 1, Exception)


def test_what_nobody_repeats_alone_is_raised(undisturbed, monkeypatch):
    core, requests = new_crowd()
    core.step()
    healthy, calls = core_module.choose_on_device, []

    def fails_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise ValueError("once")
        return healthy(*args)

    monkeypatch.setattr(core_module, "choose_on_device", fails_once)
    with pytest.raises(ValueError, match="once"):
        core.step()
    to_the_end(core)
    assert fates(requests) == undisturbed


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (["a", 1], "prompt token 0 is 'a'"),
        ([1, 2.0], "prompt token 1 is 2.0"),
        ([True], "prompt token 0 is True"),
        ([1, None], "prompt token 1 is None"),
        (5, "prompt token 0 is 5; expected token ids"),
        ([1, 1 << 70], "prompt token 1 is 1180591620717411303424"),
    ],
)
def test_a_prompt_that_is_not_made_of_ids_leaves_nothing(undisturbed, prompt, reason):
    core, requests = new_crowd()
    core.step()
    with pytest.raises(EngineError, match=reason):
        core.add(prompt, SamplingParams())
    with pytest.raises(EngineError, match="is no SamplingParams"):
        core.add([1], {"max_tokens": 3})  # type: ignore[arg-type]
    assert len(core.requests) == 4
    to_the_end(core)
    assert fates(requests) == undisturbed


def test_numbers_of_other_libraries_are_ids():
    core = new_core()
    request = core.add(torch.tensor([3, 4]), SamplingParams(max_tokens=1))  # type: ignore[arg-type]
    assert request.prompt_ids == (3, 4)
    assert {type(token) for token in request.prompt_ids} == {int}


@pytest.mark.parametrize("point", range(0, 60, 3))
def test_an_interrupt_in_add_or_finish_leaves_all_or_nothing(undisturbed, point):
    core, requests = new_crowd()
    core.step()
    with interrupted(point), suppress(KeyboardInterrupt):
        core.add([4, 5], SamplingParams(max_tokens=2), request_id="late")
    with interrupted(point // 2), suppress(KeyboardInterrupt):
        core.finish("late")
    core.recover()
    assert len(core.queues.waiting) + len(core.queues.running) == len(core.requests)
    core.finish("late")
    assert "late" not in core.requests
    to_the_end(core)
    assert fates(requests) == undisturbed


# --- texts: an error in one call, and the streams of others ---------------------------------------


STREAMS = [
    ("あいう the 東京 12", SamplingParams(temperature=0, max_tokens=12, stop=["zq"])),
    ("a", SamplingParams(seed=3, max_tokens=9, logprobs=2, prompt_logprobs=1)),
    ("です" * 6, SamplingParams(n=2, seed=4, max_tokens=8, ignore_eos=True)),
    ("cat", SamplingParams(seed=9, max_tokens=9, guided=GuidedParams(regex="[a-z]{3,12}"))),
]
OTHERS = [
    SamplingParams(seed=1, max_tokens=4, logprobs=1, presence_penalty=0.5),
    SamplingParams(seed=2, max_tokens=5, guided=GuidedParams(regex="[0-9]+")),
    SamplingParams(n=2, seed=3, max_tokens=4),
]


def generate(llm: LLM) -> Any:
    return llm.generate(["the", "東京", "x y z"], OTHERS, use_tqdm=False)


def day(llm: LLM, between: Callable[[], object]) -> list[dict[int, list[Any]]]:
    """What four streams give, in the middle of which something happens."""
    streams = [llm.stream(prompt, params) for prompt, params in STREAMS]
    got: list[list[StreamPiece]] = [[next(stream)] for stream in streams]
    for pieces, stream in zip(got, streams, strict=True):
        pieces.append(next(stream))
    between()
    assert len(llm.core.requests) <= 5, "somebody runs for whom nobody waits"
    llm.core.cache.check_integrity()
    for pieces, stream in zip(got, streams, strict=True):
        pieces.extend(stream)
    assert not llm.core.requests
    return [by_completion(pieces) for pieces in got]


def by_completion(pieces: Sequence[StreamPiece]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for piece in pieces:
        found[piece.completion].append((piece.token_id, piece.text, piece.finish_reason))
    return dict(found)


@pytest.fixture(params=[False, True], ids=["one after the other", "overlapped"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """Clean before and after each test."""
    assert_clean(shared(request.param))
    yield shared(request.param)
    assert_clean(shared(request.param))


@cache
def shared(overlap: bool) -> LLM:
    settings = {"memory_bytes": 120_000, "block_size": 2, "max_num_batched_tokens": 24}
    return noise_llm(overlap=overlap, **settings)


def test_an_interrupt_anywhere_in_a_call_changes_no_other_calls_text(llm):
    expected, reached = day(llm, lambda: None), []

    def broken_off(point: int) -> None:
        error = (KeyboardInterrupt, MemoryError)[point % 2]("planned")
        with interrupted(point, error) as interrupter, suppress(type(error)):
            generate(llm)
        reached.append(interrupter.where)

    for point in range(31, 5000, 509):
        assert day(llm, lambda point=point: broken_off(point)) == expected, reached[-1]
    assert len(set(reached)) > 6


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ModelRunner, "run"),
        (HybridCache, "allocate"),
        (TextStream, "push"),
        (TextStream, "take_all"),
        (EngineCore, "add"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_real_interrupt(llm, monkeypatch, owner, name):
    """SIGINT, whose time is when the engine is at a certain place for the third time."""
    expected, hits = day(llm, lambda: None), []
    healthy = getattr(owner, name)

    def broken_off() -> None:
        calls: list[str] = []

        def disturbed(*args: Any, **how: Any) -> Any:
            calls.append(name)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            return healthy(*args, **how)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, disturbed)
            try:
                generate(llm)
            except KeyboardInterrupt:
                hits.append(name)

    assert day(llm, broken_off) == expected
    assert day(llm, broken_off) == expected
    assert hits == [name, name]


def test_an_interrupt_while_prompts_are_queued_or_dropped_leaves_nobody():
    llm, params = shared(False), SamplingParams(n=2, max_tokens=500, ignore_eos=True)
    with interrupted(-1) as interrupter:
        llm.stream(["the"] * 5, params).close()  # type: ignore[attr-defined]
    for point in range(3, interrupter.num_passed, 37):
        with interrupted(point), suppress(KeyboardInterrupt):
            llm.stream(["the"] * 5, params).close()  # type: ignore[attr-defined]
        llm.abort("nobody")  # what could not be granted any more is granted with the next call
        assert_clean(llm)
    assert interrupter.num_passed > 500


def test_a_text_that_cannot_be_made_ends_the_call_it_belongs_to(llm, monkeypatch):
    """The step in which that comes to light is another call's."""
    expected = day(llm, lambda: None)
    healthy = TextStream.push

    def failing(text: TextStream, token: int) -> str:
        if text._stops == ("never",) and len(text.text) > 2:
            raise ZeroDivisionError("this text")
        return healthy(text, token)

    monkeypatch.setattr(TextStream, "push", failing)
    bad = llm.stream("the", SamplingParams(seed=1, max_tokens=30, stop=["never"], ignore_eos=True))
    next(bad)
    assert day(llm, lambda: generate(llm)) == expected
    with pytest.raises(ZeroDivisionError, match="this text"):
        list(bad)


def test_a_grammar_that_fails_is_raised_to_its_own_caller(llm, monkeypatch):
    expected = day(llm, lambda: None)
    start = GuidePool.start

    def fragile(pool: GuidePool, params: GuidedParams) -> Any:
        guide = start(pool, params)
        if params.regex == "[0-9]+":
            guide.accept = lambda token: 1 / 0  # type: ignore[method-assign, assignment]
        return guide

    monkeypatch.setattr(GuidePool, "start", fragile)

    def between() -> None:
        with pytest.raises(ZeroDivisionError):
            generate(llm)

    assert day(llm, between) == expected


# --- threads --------------------------------------------------------------------------------------


def together(*works: Callable[[], object]) -> None:
    """Each in a thread of its own; raises what one of them raises."""
    raised: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    for error in raised:
        raise error


def ids(outputs: Any) -> list[Any]:
    return [[(o.token_ids, o.text) for o in output.outputs] for output in outputs]


def test_threads_take_turns(llm):
    expected, found = ids(generate(llm)), []
    streamed = day(llm, lambda: None)

    def streaming() -> None:
        for number, (prompt, params) in enumerate(STREAMS):
            got = by_completion(list(llm.stream(prompt, params)))
            assert got == streamed[number]

    together(*[lambda: found.append(ids(generate(llm)))] * 3, streaming, streaming)
    assert found == [expected] * 3


def test_an_open_stream_holds_nobody_up(llm):
    expected = ids(generate(llm))
    found = []
    assert day(llm, lambda: together(lambda: found.append(ids(generate(llm)))))
    assert found == [expected]


def test_aborting_and_leaving_from_another_thread_do_not_wait(llm):
    """The engine is at work for somebody else; what is wished comes true between two steps."""
    long = SamplingParams(max_tokens=300, ignore_eos=True)
    left = llm.stream("the", long)
    next(left)
    (leaving,) = llm.core.requests.values()
    outputs: list[Any] = []
    start = llm.core.num_steps

    def leave() -> None:
        while llm.core.num_steps < start + 3:
            time.sleep(0)
        left.close()  # type: ignore[attr-defined]
        newest = max(llm.core.requests, key=lambda name: llm.core.requests[name].arrival)
        llm.abort(newest)
        assert llm.core.has_work  # the other is still at it

    together(lambda: outputs.extend(llm.generate(["a", "b"], long, use_tqdm=False)), leave)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == ["length", "abort"]
    assert leaving.finish_reason == "abort"
    assert len(leaving.output_ids) < 300


def test_a_stream_that_is_dropped_in_the_middle_of_a_step(llm, monkeypatch):
    """As the garbage collector may do it."""
    expected = ids(generate(llm))
    streams = [llm.stream("the", SamplingParams(max_tokens=300, ignore_eos=True))]
    next(streams[0])
    healthy = HybridCache.allocate

    def collecting(cache: HybridCache, *args: Any) -> None:
        streams.clear()
        healthy(cache, *args)

    monkeypatch.setattr(HybridCache, "allocate", collecting)
    assert ids(generate(llm)) == expected


def test_an_observer_may_abort_and_even_generate(llm):
    expected, inner = ids(generate(llm)), []

    def observer(*_: object) -> None:
        llm.core.observers.remove(observer)
        inner.append(ids(generate(llm)))
        llm.abort("nobody")

    llm.core.observers.append(observer)
    assert ids(generate(llm)) == expected
    assert inner == [expected]


def test_a_program_that_ends_in_the_middle_of_a_stream_ends_quietly():
    """The generator is closed when half of Python's modules are gone."""
    program = (
        "import plamo_ref\n"  # whose modules then live long enough to be emptied
        "llm = plamo_ref.LLM('tiny', memory_bytes=1 << 24)\n"
        "stream = llm.stream('To be')\n"
        "next(stream)\n"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
