"""The engine in its own process, as the event loop sees it.

Invariant tested: every call ends, with tokens equal to the offline engine's or with an error that
says why, and afterwards the engine holds nothing of it.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zmq
import zmq.asyncio

import plamo_ref
from plamo_ref import LLM, RequestOutput, SamplingParams
from plamo_ref.engine.config import EngineError
from plamo_ref.intake.prompts import PromptError
from plamo_ref.remote import restarts, supervisor
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import (
    Delta,
    EngineBusyError,
    EngineDiedError,
    EngineUnavailableError,
    GrammarRefusedError,
    Job,
    RequestRefusedError,
    SlowReaderError,
)
from plamo_ref.remote.child import EngineProcess
from plamo_ref.remote.messages import (
    Add,
    Alive,
    Codec,
    Failed,
    PromptFacts,
    Ready,
    Step,
    Token,
)
from plamo_ref.remote.restarts import Restarts
from plamo_ref.remote.supervisor import Supervisor
from plamo_ref.sampling import GuidedParams, TokenLogprobs

ENGINE = {
    "dtype": "float64",  # for which alone equality in any company is promised
    "memory_bytes": 128 << 20,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
}
LONG = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)


@dataclass(frozen=True)
class Engine:
    """An engine that several tests share, and the event loop that it lives in."""

    runner: asyncio.Runner
    llm: AsyncLLM

    def run(self, test: Callable[[AsyncLLM], Awaitable[None]]) -> None:
        """Run `test`; it must leave the engine clean."""

        async def whole() -> None:
            await test(self.llm)
            await holds_nothing(self.llm)

        self.runner.run(whole())


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("OMP_NUM_THREADS", "1")
        llm = AsyncLLM("tiny", **ENGINE)
        runner.run(llm.start())
        yield Engine(runner, llm)
        runner.run(llm.close())
        assert llm.state == "closed"


async def holds_nothing(llm: AsyncLLM) -> None:
    audit = await llm.audit()
    assert (audit.problem, audit.num_requests, llm.num_requests) == (None, 0, 0)
    assert (set(audit.stats.blocks_used.values()), audit.stats.slots_used) == ({0}, 0)


async def collect(llm: AsyncLLM, jobs: list[Job]) -> dict[int, list[Delta]]:
    deltas: dict[int, list[Delta]] = {index: [] for index in range(len(jobs))}
    async for delta in llm.deltas(jobs):
        deltas[delta.index].append(delta)
    return deltas


def test_tokens_texts_and_reasons_are_those_of_the_offline_engine(engine):
    params = [
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(temperature=1, seed=7, max_tokens=12),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=3, max_tokens=1),
        SamplingParams(temperature=1, seed=5, max_tokens=24, stop=["。", "the"]),
        SamplingParams(temperature=1, seed=5, max_tokens=6, logit_bias={11: 3.0}, logprobs=2),
        SamplingParams(
            logit_bias={97: 999.0, 98: 999.0},  # a, b
            seed=1,
            max_tokens=40,
            stop="aab",
            stop_token_ids=[99],
            min_tokens=4,
        ),
        SamplingParams(stop_token_ids=[97], logit_bias={97: 999}, include_stop_str_in_output=True),
        SamplingParams(seed=2**70, max_tokens=None, stop="。"),
    ]
    prompts = ["吾輩は", "To be, or", "🙂", "名前は", "x", "y", "z", "w"]
    offline = LLM("tiny", **ENGINE)
    ids = [offline.tokenizer.encode(prompt) for prompt in prompts]
    wanted = [output.outputs[0] for output in offline.generate(ids, params, use_tqdm=False)]

    async def test(llm: AsyncLLM) -> None:
        jobs = [Job(*pair) for pair in zip(ids, params, strict=True)]
        deltas = await collect(llm, jobs)
        for index, want in enumerate(wanted):
            got = deltas[index]
            assert "".join(d.text for d in got) == want.text
            assert tuple(d.token_id for d in got) == want.token_ids
            reasons = [d.finish_reason for d in got if d.finish_reason is not None]
            assert reasons == [want.finish_reason]
            assert got[-1].stop_reason == want.stop_reason
        assert all(isinstance(d.logprobs, TokenLogprobs) for d in deltas[4])
        assert {d.logprobs for d in deltas[0]} == {None}
        assert [d.text for d in deltas[6]] == ["a"], "a stop token whose text was asked for"

    engine.run(test)


def comparable(output: RequestOutput) -> object:
    """Everything but times and the request's name; scores to 1e-9, as company rounds them."""

    def rounded(scores: Any) -> Any:
        return scores and [
            of
            and {token: (round(s.logprob, 9), s.rank, s.decoded_token) for token, s in of.items()}
            for of in scores
        ]

    completions = [(replace(c, logprobs=None), rounded(c.logprobs)) for c in output.outputs]
    return (
        replace(output, request_id="", metrics=None, prompt_logprobs=None, outputs=()),
        rounded(output.prompt_logprobs),
        completions,
    )  # type: ignore[arg-type]


def test_it_speaks_as_the_offline_engine_does(engine):
    """Prompts in every form, several completions of one, scores, grammars: the same outputs."""
    offline = LLM("tiny", **ENGINE)
    prompts = ["吾輩は", [1, 50, 60], {"prompt": "To be"}, "x"]
    params = [
        SamplingParams(temperature=1, seed=7, max_tokens=9, n=3, logprobs=2),
        SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=1),
        SamplingParams(temperature=1, seed=5, max_tokens=30, stop=["e", "。"]),
        SamplingParams(
            guided=GuidedParams(choice=["はい", "いいえ"]), max_tokens=20, temperature=0
        ),
    ]
    wanted = offline.generate(prompts, params, use_tqdm=False)

    async def test(llm: AsyncLLM) -> None:
        got = await llm.generate(prompts, params)
        for g, w in zip(got, wanted, strict=True):
            assert comparable(g) == comparable(w)
        for output in got:
            times = output.metrics
            assert times.first_token is not None
            assert times.finished is not None
            assert times.queued <= times.first_token <= times.finished
        pieces = [piece async for piece in llm.stream(prompts, params)]
        for index, output in enumerate(wanted):
            for completion in output.outputs:
                own = [p for p in pieces if (p.index, p.completion) == (index, completion.index)]
                assert "".join(p.text for p in own) == completion.text
                assert own[-1].finish_reason == completion.finish_reason

    engine.run(test)


def test_a_call_that_is_refused_or_cancelled_leaves_nothing(engine):
    async def test(llm: AsyncLLM) -> None:
        with pytest.raises(PromptError, match="prompt 1"):
            await llm.generate(["a", 3.5])
        with pytest.raises(RequestRefusedError, match="70000"):
            await llm.generate([[1, 2], [70_000]], LONG)
        with pytest.raises(GrammarRefusedError):
            await llm.generate("a", SamplingParams(guided=GuidedParams(regex="(")))
        await holds_nothing(llm)
        call = asyncio.ensure_future(llm.generate(["a", "b"], LONG))
        while llm.num_requests < 2:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert llm.num_requests == 0

    engine.run(test)


def test_without_a_package_it_says_which(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("plamo_ref.remote")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"AsyncLLM needs msgspec: pip install 'plamo-ref"
    ):
        plamo_ref.AsyncLLM  # noqa: B018


def test_prompt_logprobs_come_with_the_first_token_alone(engine):
    async def test(llm: AsyncLLM) -> None:
        ids = llm.tokenizer.encode("吾輩は猫である。" * 20)  # more than one step's tokens
        params = SamplingParams(max_tokens=3, ignore_eos=True, prompt_logprobs=1)
        (first, *others) = (await collect(llm, [Job(ids, params)]))[0]
        assert first.prompt_logprobs is not None
        assert [s.token_id for s in first.prompt_logprobs] == ids[1:]
        assert [d.prompt_logprobs for d in others] == [None, None]

    engine.run(test)


def test_a_grammar_is_followed_in_the_other_process_and_a_wrong_one_is_refused(engine):
    async def test(llm: AsyncLLM) -> None:
        ids = llm.tokenizer.encode("答え: ")
        good = SamplingParams(max_tokens=40, guided=GuidedParams(choice=["はい", "no"]))
        text = "".join(d.text for d in (await collect(llm, [Job(ids, good)]))[0])
        assert text in ("はい", "no")
        bad = SamplingParams(guided=GuidedParams(regex="("))
        with pytest.raises(RequestRefusedError, match=r"guided\.regex"):
            await collect(llm, [Job(ids, bad)])

    engine.run(test)


def test_closing_cancelling_and_refusing_leave_nothing_in_the_engine(engine):
    async def test(llm: AsyncLLM) -> None:
        ids = llm.tokenizer.encode("吾輩は")
        async with aclosing(llm.deltas([Job(ids, LONG)] * 12)) as deltas:
            await anext(deltas)
            assert llm.num_requests == 12
        await holds_nothing(llm)

        task = asyncio.create_task(collect(llm, [Job(ids, LONG)] * 3))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await holds_nothing(llm)

        with pytest.raises(RequestRefusedError, match="vocabulary"):
            await collect(llm, [Job(ids, LONG), Job([10**6], LONG)])
        await holds_nothing(llm)

    engine.run(test)


def test_a_stop_string_ends_the_request_in_the_engine_too(engine):
    async def test(llm: AsyncLLM) -> None:
        ids = llm.tokenizer.encode("吾輩は")
        whole = "".join(d.text for d in (await collect(llm, [Job(ids, short(30))]))[0])
        stop = whole[5:7]
        deltas = (await collect(llm, [Job(ids, short(2000, stop=[stop]))]))[0]
        assert "".join(d.text for d in deltas) == whole[: whole.index(stop)]
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)

    engine.run(test)


def short(max_tokens: int, **more: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **more)


def test_more_requests_than_allowed_are_refused_at_once(engine, monkeypatch):
    monkeypatch.setattr(engine.llm, "max_requests", 4)

    async def test(llm: AsyncLLM) -> None:
        ids = llm.tokenizer.encode("吾輩は")
        async with aclosing(llm.deltas([Job(ids, LONG)] * 3)) as deltas:
            await anext(deltas)
            with pytest.raises(EngineBusyError, match="try again"):
                await collect(llm, [Job(ids, LONG)] * 2)
            with pytest.raises(RequestRefusedError, match="5 completions"):
                await collect(llm, [Job(ids, LONG)] * 5)
            assert len(await collect(llm, [Job(ids, short(1))])) == 1

    engine.run(test)


def test_a_reader_that_does_not_read_is_ended(engine, monkeypatch):
    monkeypatch.setattr(engine.llm, "max_unread", 10)

    async def test(llm: AsyncLLM) -> None:
        job = Job(llm.tokenizer.encode("吾輩は"), LONG)
        batches = llm.batches([job])
        await anext(batches)
        while llm.num_requests:  # the engine goes on, nobody reads
            await asyncio.sleep(0.01)
        assert len(await anext(batches)) == 10
        with pytest.raises(SlowReaderError, match="10 tokens"):
            await anext(batches)

    engine.run(test)


def test_who_is_behind_gets_all_that_has_come_and_who_wants_the_whole_is_woken_once(engine):
    async def test(llm: AsyncLLM) -> None:
        jobs = [Job(llm.tokenizer.encode("吾輩は"), short(20)), Job([1, 50], short(9))]
        one_by_one = await collect(llm, jobs)
        sizes, late = [], {0: [], 1: []}
        async with aclosing(llm.batches(jobs)) as batches:
            async for batch in batches:
                sizes.append(len(batch))
                for delta in batch:
                    late[delta.index].append(delta.token_id)
                await asyncio.sleep(0.1)
        assert max(sizes) > 2
        assert late == {i: [d.token_id for d in deltas] for i, deltas in one_by_one.items()}
        (whole,) = [batch async for batch in llm.batches(jobs, whole=True)]
        for index, deltas in one_by_one.items():
            mine = [delta for delta in whole if delta.index == index]
            assert [d.token_id for d in mine] == [d.token_id for d in deltas]
            assert [d.first for d in mine] == [True] + [False] * (len(mine) - 1)
            assert all(d.waited > 0 for d in mine)

    engine.run(test)


def test_an_error_reaches_who_waits_for_the_whole(engine):
    async def test(llm: AsyncLLM) -> None:
        jobs = [Job([1, 50], LONG), Job([10**6], LONG)]
        with pytest.raises(RequestRefusedError, match="vocabulary"):
            async with asyncio.timeout(20):
                _ = [batch async for batch in llm.batches(jobs, whole=True)]

    engine.run(test)


def test_a_killed_engine_fails_what_runs_a_new_one_takes_over_and_that_is_the_end():
    async def run() -> None:
        async with AsyncLLM("tiny", **ENGINE) as llm:
            job = Job(llm.tokenizer.encode("吾輩は"), LONG)
            first = llm.engine_pid
            running = asyncio.create_task(collect(llm, [job] * 4))
            await asyncio.sleep(0.2)
            os.kill(first, signal.SIGKILL)
            with pytest.raises(EngineDiedError, match="exit code -9"):
                await running
            with pytest.raises(EngineUnavailableError, match="try again"):
                await collect(llm, [job])
            async with asyncio.timeout(60):
                while llm.state != "ready":
                    await asyncio.sleep(0.02)
            assert (llm.engine_pid != first, llm.num_restarts) == (True, 1)
            assert len((await collect(llm, [Job(job.prompt_ids, short(3))]))[0]) == 3
            llm._life._restarts = Restarts(0)
            os.kill(llm.engine_pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                await llm.dead.wait()
            assert "exit code -9" in llm.end
            with pytest.raises(EngineUnavailableError, match="dead"):
                await collect(llm, [job])

    asyncio.run(run())


def test_what_the_engine_cannot_do_is_said_in_its_own_words():
    async def start(**settings: object) -> None:
        async with AsyncLLM("tiny", **settings):
            pass

    with pytest.raises(EngineError, match="memory_bytes"):
        asyncio.run(start(memory_bytes=1000))
    with pytest.raises(EngineError, match="colour"):
        asyncio.run(start(colour="red"))


def test_closing_ends_running_calls():
    async def run() -> None:
        llm = AsyncLLM("tiny", **ENGINE)
        await llm.start()
        pid = llm.engine_pid
        task = asyncio.create_task(collect(llm, [Job([1, 50], LONG)]))
        await asyncio.sleep(0.1)
        await llm.close()
        with pytest.raises(EngineUnavailableError, match="shut down"):
            await task
        assert not psutil.pid_exists(pid)

    asyncio.run(run())


def test_the_engine_process_ends_with_its_front_however_that_dies():
    script = """
import asyncio
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import Job
from plamo_ref.sampling import SamplingParams

async def main():
    async with AsyncLLM("tiny", memory_bytes=64 << 20) as llm:
        print(llm.engine_pid, flush=True)
        job = Job([1, 50], SamplingParams(max_tokens=8000, ignore_eos=True))
        async for _ in llm.deltas([job]):
            pass

asyncio.run(main())
"""
    # What dies so suddenly cannot remove its folder; and paths of sockets have to be short.
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "TMPDIR": home, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
        ) as front:
            assert front.stdout is not None
            engine = psutil.Process(int(front.stdout.readline()))
            front.kill()
        assert psutil.wait_procs([engine], timeout=20)[1] == []


def test_messages_survive_the_wire():
    codec = Codec()
    params = SamplingParams(
        temperature=0.5,
        seed=-(2**63),
        stop=["。", "\0"],
        logit_bias={5: -100.0},
        logprobs=3,
        guided=GuidedParams(json={"type": "object", "properties": {"年": {"type": "integer"}}}),
    )
    sent = Add("7", [1, 2, 3], params, [2])
    got = codec.for_engine(codec.encode(sent))
    assert got == sent
    score = TokenLogprobs(5, -0.25, 1, ((5, -0.25), (7, -2.0)))
    token = Token("7", 5, "stop", False, score, PromptFacts(3, [score]))
    assert token == Codec().for_front(codec.encode(Step([token]))).tokens[0]


def nested(depth: int) -> dict:
    schema: dict = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [{"maximum": 2**70}, {"const": "\ud800"}, nested(300)],
    ids=["a number of more than 64 bits", "half a character", "depth"],
)
def test_what_cannot_be_told_to_the_engine_is_refused_and_leaves_nothing(engine, schema):
    params = SamplingParams(guided=GuidedParams(json=schema))

    async def test(llm: AsyncLLM) -> None:
        with pytest.raises(GrammarRefusedError, match=r"cannot be told|guided\.json"):
            await collect(llm, [Job([1, 50], LONG), Job([1, 50], params)])

    engine.run(test)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (Job([1, 5.0], LONG), "token 1 is 5.0"),
        (Job([1, True], LONG), "token 1 is True"),
        (Job("text", LONG), "'text' is of no use"),
        (Job(None, LONG), "None is of no use"),
        (Job([1, 50], {"max_tokens": 3}), "is no Job of"),
        (Job([1, 50], None), "is no Job of"),
        (([1, 50], LONG), "is no Job of"),
        (Job([1, 2**70], LONG), "cannot be told|vocabulary"),
        (Job([], LONG), "the prompt has no tokens"),
        (Job([1, 50], SamplingParams(stop_token_ids=[5120])), "stop_token_ids names token 5120"),
    ],
    ids=str,
)
def test_a_job_of_other_types_is_refused_and_leaves_nothing(engine, job, reason):
    async def test(llm: AsyncLLM) -> None:
        with pytest.raises(RequestRefusedError, match=reason):
            await collect(llm, [Job([1, 50], LONG), job])
        arrays = [Job(np.array([1, 50]), short(3)), Job(torch.tensor([1, 50]), short(3))]
        first, second = (await collect(llm, arrays)).values()
        assert [d.token_id for d in first] == [d.token_id for d in second]

    engine.run(test)


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "temperature": "hot",
        "n": True,
        "stop": [5],
        "seed": 1.5,
        "top_p": 7.0,
        "stop_token_ids": ["a"],
        "logit_bias": {"x": 1},
        "guided": {"regex": 5},
    }.items(),
)
def test_an_ill_typed_request_that_reaches_the_engine_ends_that_request_alone(engine, field, value):
    """Whoever writes past all checks gets a refusal, and his neighbour goes on."""
    params = replace(LONG)
    object.__setattr__(params, field, value)

    async def test(llm: AsyncLLM) -> None:
        pid = llm.engine_pid
        async with aclosing(llm.deltas([Job([1, 50], LONG)])) as deltas:
            await anext(deltas)
            with pytest.raises(RequestRefusedError):
                await collect(llm, [Job([1, 50], params)])
            await anext(deltas)
        assert (llm.engine_pid, llm.num_restarts) == (pid, 0)

    engine.run(test)


def test_where_no_socket_can_be_the_start_fails_and_says_where(tmp_path, monkeypatch):
    home = tmp_path / ("x" * 110)
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))

    async def start() -> None:
        async with asyncio.timeout(20), AsyncLLM("tiny", **ENGINE):
            pass

    with pytest.raises(EngineError, match="TMPDIR"):
        asyncio.run(start())


def fake_lives(
    monkeypatch: pytest.MonkeyPatch,
    *lives: Callable[[], AsyncIterator],
    num_requests: int = 0,
    stall_seconds: float = 60,
) -> Supervisor:
    """A supervisor whose engines, one after the other, say this, wait so long, and end, while so
    many requests are under way."""
    waiting = iter(lives)

    class Fake:
        exit_code = 7

        @classmethod
        async def start(cls, *_: object) -> "Fake":
            return cls()

        def messages(self) -> AsyncIterator:
            return next(waiting)()

        async def close(self) -> None:
            pass

    monkeypatch.setattr(supervisor, "EngineProcess", Fake)
    monkeypatch.setattr(restarts, "FIRST_DELAY", 0)
    monkeypatch.setattr(restarts, "STABLE_SECONDS", 0.05)
    return Supervisor(
        Path(), {}, 1, stall_seconds, lambda message: None, lambda error: num_requests
    )


async def ready_at_once() -> AsyncIterator:
    yield Ready(1, 1, 1, 1)


async def long_in_loading() -> AsyncIterator:
    await asyncio.sleep(0.1)
    if False:
        yield


async def not_understood() -> AsyncIterator:
    raise ValueError("not a message")
    yield


@pytest.mark.parametrize("end", [long_in_loading, not_understood])
def test_an_engine_that_is_never_ready_again_is_given_up_however_it_ends(monkeypatch, end):
    async def run() -> None:
        life = fake_lives(monkeypatch, ready_at_once, *[end] * 9)
        async with asyncio.timeout(20):
            await life.start()
            await life.dead.wait()
        assert (life.state, life.num_restarts) == ("dead", 1)
        assert "2. in a row" in life.end
        await life.close()

    asyncio.run(run())


def test_engines_that_die_over_requests_are_never_given_up(monkeypatch):
    async def run() -> None:
        life = fake_lives(monkeypatch, *[ready_at_once] * 50, num_requests=1)
        async with asyncio.timeout(20):
            await life.start()
            while life.num_restarts < 20:
                await asyncio.sleep(0.001)
        assert not life.dead.is_set()
        await life.close()

    asyncio.run(run())


async def until(llm: AsyncLLM, state: str) -> None:
    async with asyncio.timeout(60):
        while llm.state != state:
            await asyncio.sleep(0.02)


def test_an_engine_that_hangs_is_seen_ended_and_started_again():
    async def run() -> None:
        async with AsyncLLM("tiny", stall_seconds=2, **ENGINE) as llm:
            job = Job(llm.tokenizer.encode("吾輩は"), short(60))
            endless = Job(job.prompt_ids, LONG)
            whole = (await collect(llm, [job]))[0]
            first = llm.engine_pid
            running, leaving = [asyncio.create_task(collect(llm, [j])) for j in (job, endless)]
            await asyncio.sleep(0.1)
            os.kill(first, signal.SIGSTOP)
            await until(llm, "stalled")
            with pytest.raises(EngineUnavailableError, match="stalled"):
                await collect(llm, [job])
            leaving.cancel()
            await asyncio.wait({leaving})
            os.kill(first, signal.SIGCONT)  # it was no hang
            await until(llm, "ready")
            assert [d.token_id for d in (await running)[0]] == [d.token_id for d in whole]
            await holds_nothing(llm)

            running = asyncio.create_task(collect(llm, [endless]))
            await asyncio.sleep(0.1)
            os.kill(first, signal.SIGSTOP)
            with pytest.raises(EngineDiedError, match="hung: no sign of life"):
                await running
            assert not psutil.pid_exists(first)
            await until(llm, "ready")
            assert (llm.num_restarts, llm.engine_pid != first) == (1, True)
            assert [d.token_id for d in (await collect(llm, [job]))[0]] == [
                d.token_id for d in whole
            ]

    asyncio.run(run())


def test_a_loop_that_hangs_is_ended_though_its_process_speaks(monkeypatch):
    killed = asyncio.Event()

    async def hangs() -> AsyncIterator:
        yield Ready(1, 1, 1, 1)
        while not killed.is_set():
            yield Alive("step", 10.0, 0.1, "plamo_ref.x, line 7")
            await asyncio.sleep(0.01)

    async def run() -> None:
        reasons: list[str] = []
        life = fake_lives(monkeypatch, hangs, stall_seconds=0.4)

        async def kill(_: object) -> None:
            killed.set()

        monkeypatch.setattr(supervisor.EngineProcess, "kill", kill, raising=False)
        life._lost = lambda error: reasons.append(str(error)) or 1
        life._restarts = Restarts(0)
        async with asyncio.timeout(20):
            await life.start()
            await life.dead.wait()
        assert "hung: in one step for 10 s, at plamo_ref.x, line 7" in reasons[0]
        await life.close()

    asyncio.run(run())


def test_the_last_words_of_a_process_are_heard_though_they_come_after_its_end():
    class Gone:
        stdin, returncode = None, 1

        async def wait(self) -> int:
            return 1

    async def run() -> None:
        context = zmq.asyncio.Context()
        with tempfile.TemporaryDirectory() as folder:
            address = f"ipc://{folder}/x"
            socket, engine = context.socket(zmq.PULL), context.socket(zmq.PUSH)
            socket.bind(address)
            engine.connect(address)
            child = EngineProcess(Gone(), context, (engine, socket), None)  # type: ignore[arg-type]

            async def speak() -> None:
                await asyncio.sleep(0.05)
                await engine.send(Codec().encode(Failed("no memory")))

            speaking = asyncio.create_task(speak())
            assert [message async for message in child.messages()] == [Failed("no memory")]
            await speaking
            context.destroy(linger=0)

    asyncio.run(run())


def test_a_call_may_be_closed_while_the_engine_is_going(engine, monkeypatch):
    async def test(llm: AsyncLLM) -> None:
        async with aclosing(llm.deltas([Job([1, 50], short(4))])) as deltas:
            await anext(deltas)
            with monkeypatch.context() as gone:
                gone.setattr(llm._life, "_ready", None)  # as it is until `_lost` has been called
                await deltas.aclose()
        while (await llm.audit()).num_requests:  # this engine did not go: it ends by itself
            await asyncio.sleep(0.01)

    engine.run(test)
