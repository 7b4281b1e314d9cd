"""Replicas, without Ray: the policy alone, and the client on replicas of this process.

Invariant tested: who gets a request follows from prefixes and loads as the policy says; the client
gives what one engine gives, loses only what a lost replica worked on, and holds nothing of those
who have left. `test_cluster_ray.py` has the same on Ray.
"""

import asyncio
import re
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref import LLM, SamplingParams
from plamo_ref.cli import main
from plamo_ref.cluster import extra, seat
from plamo_ref.cluster.client import BOUND, ReplicatedAsyncLLM
from plamo_ref.cluster.extra import ClusterError, granted, resources, seeded
from plamo_ref.cluster.handle import LostError
from plamo_ref.cluster.policy import PrefixRouting
from plamo_ref.cluster.replica import Replica, Report
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.calls import (
    Delta,
    EngineBusyError,
    EngineDiedError,
    EngineUnavailableError,
    Job,
    RequestRefusedError,
)
from plamo_ref.server.app import create_app
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.service import Service

# --- the policy -----------------------------------------------------------------------------------

BLOCK = 2
PROMPTS = st.lists(st.integers(0, 1), max_size=9)
SALTS = st.sampled_from([None, "a"])
LOADS = st.dictionaries(st.integers(0, 3), st.integers(0, 6), min_size=1)
CALLS = st.lists(st.tuples(PROMPTS, SALTS, LOADS, st.integers(0, 9)), min_size=1, max_size=30)


def known(prompt: Sequence[int], salt: str | None, told: Sequence[tuple]) -> int:
    """Tokens of whole blocks that one of the earlier prompts begins with, and the same salt."""
    best = 0
    for earlier, its_salt in told:
        equal = 0
        while equal < min(len(prompt), len(earlier)) and prompt[equal] == earlier[equal]:
            equal += 1
        best = max(best, equal - equal % BLOCK if its_salt == salt else 0)
    return best


@given(calls=CALLS, bound=st.integers(0, 4))
def test_a_prefix_is_followed_within_the_bound_and_no_further(calls, bound):
    """Against a second policy that remembers every prompt and compares them token by token."""
    routing = PrefixRouting(bound, block=BLOCK)
    told: dict[int, list[tuple]] = {replica: [] for replica in range(4)}
    for prompt, salt, loads, lost in calls:
        if lost in told:
            routing.forget(lost)
            told[lost] = []
        chosen = routing.choose(prompt, salt, loads)
        least = min(loads.values())
        near = {replica for replica, load in loads.items() if load <= least + bound}
        knows = {replica: known(prompt, salt, told[replica]) for replica in near}
        assert chosen in near
        assert knows[chosen] == max(knows.values())
        if knows[chosen]:
            equals = {replica for replica in near if knows[replica] == knows[chosen]}
        else:
            equals = near
        assert loads[chosen] == min(loads[replica] for replica in equals)
        told[chosen].append((prompt, salt))


def test_the_bound_is_exact_and_the_longest_beginning_counts():
    routing = PrefixRouting(2, block=1)
    assert routing.choose([1, 2, 3], None, {0: 0, 1: 1}) == 0
    assert routing.choose([1, 2, 3], None, {0: 2, 1: 0}) == 0  # worth it
    assert routing.choose([1, 9], None, {0: 3, 1: 0}) == 1  # not worth it; so 1 learns [1], too
    assert routing.choose([1, 2, 4], None, {0: 1, 1: 0}) == 0
    assert routing.choose([1, 5], None, {0: 1, 1: 0}) == 1


@given(loads=LOADS, prompt=PROMPTS)
def test_without_prefixes_the_load_decides(loads, prompt):
    routing = PrefixRouting(9, by_prefix=False, block=BLOCK)
    for _ in range(3):
        assert loads[routing.choose(prompt, None, loads)] == min(loads.values())


def test_idle_replicas_take_turns_and_what_is_remembered_is_bounded():
    routing = PrefixRouting(0, block=1, remembered=3)
    idle = dict.fromkeys(range(3), 0)
    assert [routing.choose([i], None, idle) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [routing.choose([i], None, idle) for i in (5, 4, 3)] == [2, 1, 0]  # what they know
    assert routing.choose([0], None, idle) == 2  # forgotten: whose turn it is


# --- what Ray is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "available", "wanted"),
    [
        ({"device": "cpu"}, {"CPU": 8, "GPU": 8}, {"num_cpus": 1}),
        ({}, {"CPU": 8}, {"num_cpus": 1}),
        ({}, {"CPU": 1}, {"num_cpus": 0}),  # a small machine: they share it
        ({}, {"GPU": 2}, {"num_gpus": 1}),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {"GPU": 8}, {"num_gpus": 4}),
    ],
)
def test_a_replica_asks_for_a_gpu_for_each_rank_or_for_a_cpu(config, available, wanted):
    assert resources(EngineConfig(**config), 2, available, available) == wanted


def test_what_ray_cannot_give_is_refused():
    with pytest.raises(ClusterError, match="for each replica that is 4, and 3 are free"):
        resources(EngineConfig(tensor_parallel_size=2), 2, {"GPU": 4}, {"GPU": 3})
    with pytest.raises(EngineError, match="say device='cuda'"):
        resources(EngineConfig(device="cuda:1"), 2, {"GPU": 3}, {"GPU": 3})


def test_what_was_just_given_back_is_waited_for(monkeypatch):
    class Ray:
        def __init__(self, *free: int) -> None:
            self.free = list(free)

        def cluster_resources(self) -> dict[str, float]:
            return {"GPU": 2}

        def available_resources(self) -> dict[str, float]:
            return {"GPU": self.free.pop(0) if len(self.free) > 1 else self.free[0]}

    monkeypatch.setattr(extra, "LOOK_SECONDS", 0)
    assert granted(Ray(0, 1, 2), EngineConfig(), 2) == {"num_gpus": 1}
    monkeypatch.setattr(extra, "FREE_SECONDS", 0)
    with pytest.raises(ClusterError, match="and 1 are free"):
        granted(Ray(1), EngineConfig(), 2)
    with pytest.raises(ClusterError, match="and 2 are free"):
        granted(Ray(2), EngineConfig(), 3)


def test_replicas_draw_different_numbers_for_those_without_a_seed():
    configs = [seeded(EngineConfig(data_parallel_size=2, seed=5), i) for i in range(2)]
    assert [(one.seed, one.data_parallel_size) for one in configs] == [(5, 1), (6, 1)]


def test_without_ray_everybody_is_told_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'plamo-ref\[cluster\]'"):
        LLM("tiny", data_parallel_size=2)
    assert main(["serve", "--data-parallel-size", "2", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'plamo-ref[cluster]'" in err
    assert err.count("\n") == 1


def test_nobody_imports_ray_unasked():
    """Its modules come from `extra.load` alone."""
    package = Path(extra.__file__).parent.parent
    wrong = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) ray\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert wrong == []
    assert "ray" not in sys.modules


def test_one_engine_is_not_several():
    with pytest.raises(EngineError, match="data_parallel_size must be 1 or more"):
        EngineConfig(data_parallel_size=0)


@pytest.mark.parametrize("option", [("--uds", "/tmp/x"), ("--ssl-ciphers", "x")])
def test_what_rays_proxy_cannot_do_is_refused(capsys, option):
    assert main(["serve", "--data-parallel-size", "2", *option]) == 2
    assert f"{option[0]}: with --data-parallel-size Ray Serve listens" in capsys.readouterr().err


# --- the client, on replicas in this process ------------------------------------------------------

ENGINE = EngineConfig(
    dtype="float64", memory_bytes=32 << 20, max_num_seqs=16, enable_prefix_caching=True
)
LONG = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)
SHARED = list(range(3, 143))  # a long beginning


class Local:
    """The way to a replica of this process, which can be cut."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.lives = replica, 0
        self.lost = self.refuses = False

    async def report(self) -> Report:
        self._reach()
        return replace(await self.replica.report(), life=str(self.lives))

    async def reset_prefix_cache(self) -> None:
        self._reach()
        await self.replica.reset_prefix_cache()

    async def batches(
        self, jobs: Sequence[Job], whole: bool
    ) -> AsyncGenerator[list[Delta] | PlamoRefError, None]:
        if self.refuses:
            self.refuses = False
            yield EngineUnavailableError("the engine is restarting")
            return
        async with aclosing(self.replica.batches(jobs, whole)) as batches:
            async for batch in batches:
                self._reach()
                yield batch

    def kill(self) -> None:
        self.lost, self.lives = True, self.lives + 1

    def _reach(self) -> None:
        if self.lost:
            raise LostError("killed")


@dataclass(frozen=True)
class Two:
    """Two replicas, their client, and the event loop of all."""

    runner: asyncio.Runner
    llm: ReplicatedAsyncLLM
    ways: list[Local]

    def run(self, test: Awaitable[None]) -> None:
        async def whole() -> None:
            await test
            await until(lambda: self.llm.num_requests == 0)
            engines = self.llm.replicas.values()
            await until(lambda: all(one.state == "ready" for one in engines))
            await until(lambda: all(one.stats.num_running == 0 for one in engines))

        self.runner.run(whole())


async def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never was"
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(seat, "POLL_SECONDS", 0.02)

        async def start() -> Two:
            ways = [
                Local(Replica("tiny", {"config": seeded(ENGINE, number)})) for number in range(2)
            ]
            llm = ReplicatedAsyncLLM("tiny", ways, config=ENGINE, max_requests=40)
            await llm.start()
            return Two(runner, llm, ways)

        made = runner.run(start())
        yield made
        runner.run(made.llm.close())
        assert made.llm.state == "closed"
        for way in made.ways:
            assert way.replica._llm is not None
            runner.run(way.replica._llm.close())


def test_two_replicas_give_what_one_engine_gives(two):
    prompts = ["吾輩は", "To be, or", SHARED, SHARED, "It was"]
    params = [SamplingParams(seed=i, max_tokens=9 + i, n=1 + i % 2) for i in range(5)]
    with LLM("tiny", config=ENGINE) as one:
        expected = one.generate(prompts, params, use_tqdm=False)

    async def test() -> None:
        got = await two.llm.generate(prompts, params)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.prompt_token_ids == theirs.prompt_token_ids
            assert [(o.index, o.text, o.token_ids, o.finish_reason) for o in ours.outputs] == [
                (o.index, o.text, o.token_ids, o.finish_reason) for o in theirs.outputs
            ]
        await until(lambda: all(one.stats.num_steps > 0 for one in two.llm.replicas.values()))
        pieces: dict[int, list[int]] = {}
        async for piece in two.llm.stream(prompts[:3], params[:3]):
            pieces.setdefault(piece.index * 2 + piece.completion, []).append(piece.token_id)
        streamed = [tuple(pieces[key]) for key in sorted(pieces)]
        assert streamed == [o.token_ids for each in expected[:3] for o in each.outputs]

    two.run(test())


def test_a_second_visitor_finds_what_the_first_one_had_computed(two):
    params = SamplingParams(temperature=0, max_tokens=2)

    async def found(tail: int, salt: str) -> int:
        prompt = {"prompt_token_ids": [*SHARED[::-1], tail], "cache_salt": salt}
        (output,) = await two.llm.generate(prompt, params)
        return output.num_cached_tokens

    async def test() -> None:
        tails = range(6)  # if turns were taken, half of them would find nothing
        assert [await found(tail, "a") > 0 for tail in tails] == [False, *[True] * 5]
        assert await found(1, "b") == 0
        assert await two.llm.reset_prefix_cache()
        assert await found(1, "a") == 0

    two.run(test())


def test_a_lost_replica_ends_its_own_streams_and_comes_back(two):
    async def last_word(stream: AsyncGenerator[list[Delta], None]) -> str:
        try:
            for _ in range(5):
                await anext(stream)
        except EngineDiedError as error:
            return str(error)
        finally:
            await stream.aclose()
        return ""

    async def test() -> None:
        streams = [two.llm.batches([Job([7 + i, 8, 9], LONG)]) for i in range(4)]
        for stream in streams:
            await anext(stream)
        assert [one.num_requests for one in two.llm.replicas.values()] == [2, 2]
        two.ways[0].kill()
        said = [await last_word(stream) for stream in streams]
        lost = "replica 0 was lost while it worked on this request (killed)"
        assert sorted(said) == ["", "", lost, lost]
        assert two.llm.state == "ready"
        assert {n: one.state for n, one in two.llm.replicas.items()} == {
            "0": "restarting",
            "1": "ready",
        }
        outputs = await two.llm.generate(["x"] * 4, SamplingParams(max_tokens=2))
        assert len(outputs) == 4  # by the other one
        two.ways[0].lost = False
        await until(lambda: two.llm.replicas["0"].state == "ready")
        assert two.llm.num_restarts == 1

    two.run(test())


def test_with_nobody_there_requests_are_refused_and_nothing_waits(two):
    async def test() -> None:
        for way in two.ways:
            way.kill()
        await until(lambda: two.llm.state == "restarting")
        with pytest.raises(EngineUnavailableError, match="the engine is restarting: try again"):
            await two.llm.generate("x")
        for way in two.ways:
            way.lost = False
        await until(lambda: two.llm.state == "ready")

    two.run(test())


def test_a_replica_whose_engine_has_just_gone_passes_on_what_it_could_not_start(two):
    params = SamplingParams(seed=1, max_tokens=4)

    async def test() -> None:
        (expected,) = await two.llm.generate([[5, 6, 7, 8]], params)
        two.ways[0].refuses = two.ways[1].refuses = True
        with pytest.raises(EngineUnavailableError, match="the engine is restarting: try again"):
            await two.llm.generate([[5, 6, 7, 8]], params)
        await until(lambda: all(one.state == "ready" for one in two.llm.replicas.values()))
        two.ways[0].refuses = True
        outputs = await two.llm.generate([[5, 6, 7, 8]] * 2 + [[5, 6]], params)
        assert [o.outputs[0].token_ids for o in outputs[:2]] == [expected.outputs[0].token_ids] * 2

    two.run(test())


def test_what_is_under_way_is_bounded_and_forgotten_with_who_asked(two):
    job = Job([5, 6], LONG)

    async def test() -> None:
        with pytest.raises(RequestRefusedError, match="41 completions in one call, at most 40"):
            await anext(two.llm.batches([job] * 41))
        stream = two.llm.batches([replace(job, prompt_ids=[5, 6, i]) for i in range(30)])
        await anext(stream)
        assert [one.num_requests for one in two.llm.replicas.values()] == [15, 15]
        with pytest.raises(EngineBusyError, match="30 requests are under way, at most 40 may be"):
            await anext(two.llm.batches([job] * 11))
        await stream.aclose()
        with pytest.raises(RequestRefusedError, match="the vocabulary has ids"):
            await anext(two.llm.batches([Job([99_999_999], LONG)]))

    two.run(test())


def test_who_is_much_busier_is_not_sent_a_prefix_that_he_knows(two):
    base = [11, 12] * 100

    async def test() -> None:
        streams = [two.llm.batches([Job([*base, i], LONG)]) for i in range(BOUND + 2)]
        for stream in streams:
            await anext(stream)
        loads = sorted(one.num_requests for one in two.llm.replicas.values())
        assert loads == [1, BOUND + 1]
        for stream in streams:
            await stream.aclose()

    two.run(test())


def test_health_and_metrics_tell_of_each_replica(two):
    service = Service(two.llm, ServerConfig(model_name="tiny", api_keys=("k",)))
    transport = httpx.ASGITransport(create_app(service))

    async def test() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            health = (await client.get("/health")).json()
            assert health["status"] == "ready"
            assert health["replicas"] == {"0": "ready", "1": "ready"}
            assert (await client.get("/metrics")).status_code == 401
            key = {"Authorization": "Bearer k"}
            body = {"model": "tiny", "prompt": "吾輩は", "max_tokens": 3, "n": 2}
            answer = await client.post("/v1/completions", json=body, headers=key)
            assert answer.json()["usage"]["completion_tokens"] == 6
            lines = (await client.get("/metrics", headers=key)).text.splitlines()
            for number in "01":
                assert f'plamo_ref_engine_up{{replica="{number}"}} 1.0' in lines
                assert any(
                    line.startswith("plamo_ref_cache_usage{")
                    and f'replica="{number}"' in line
                    and 'pool="state_slots"' in line
                    for line in lines
                )
            assert "plamo_ref_generation_tokens_total 6.0" in lines

    two.run(test())


def test_a_replica_that_cannot_start_says_why():
    async def test() -> None:
        replica = Replica("no/such/folder", {"offline": True})
        llm = ReplicatedAsyncLLM("tiny", [Local(replica)], config=ENGINE)
        with pytest.raises(EngineError, match=r"replica 0: .*no/such/folder"):
            await llm.start()
        await llm.close()
        await replica.check_health()  # not yet: the front has to hear it
        replica._ended -= 60
        with pytest.raises(RuntimeError, match="no/such/folder"):
            await replica.check_health()

    asyncio.run(test())
