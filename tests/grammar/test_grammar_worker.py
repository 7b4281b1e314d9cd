"""Grammars in processes of their own: the masks are the plain ones, and nothing gets out of there.

Invariant tested: whatever a grammar does to its process (time, memory, a crash, SIGKILL), it costs
the text that was worked on; every other text goes on with the masks it would have had.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noise import EOS, OP, assert_clean, noise_folder, noise_llm, noise_rows

from plamo_ref import SamplingParams
from plamo_ref.grammar.pool import IDLE, MAX_DEATHS, GuidePool
from plamo_ref.grammar.worker import WorkerLimits
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import GrammarRefusedError, Job
from plamo_ref.sampling import GuidedError, GuidedParams, GuideMaker
from plamo_ref.text.tokenizer import Plamo2Tokenizer

TOKENIZER = Plamo2Tokenizer(noise_rows())
V = TOKENIZER.vocab_size + 7
MAKER = GuideMaker(TOKENIZER, V, [EOS])
ENOUGH = 60.0  # seconds for anything, on any machine

# Small texts that cost much, or crash what reads them.
ENDLESS = GuidedParams(json={"type": "integer", "multipleOf": 9_999_991})
CRASHES = {
    "a chain of rules": GuidedParams(
        grammar="start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(20_000)) + 'r20000: "x"'
    ),
    "a chain of references": GuidedParams(
        json={
            "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(10_000)}
            | {"d10000": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    ),
    "a chain of terminals": GuidedParams(
        grammar="start: T0\n"
        + "".join(f'T{i}: "a" T{i + 1}\n' for i in range(20_000))
        + 'T20000: "x"'
    ),
}


def new_pool(**limits: Any) -> GuidePool:
    return GuidePool(noise_folder(), V, [EOS], WorkerLimits(**limits))


@pytest.fixture(scope="module")
def pool() -> GuidePool:
    return new_pool()


def settled(guide: Any) -> Any:
    assert guide.wait(ENOUGH)
    return guide


def processes(pool: GuidePool) -> list[psutil.Process]:
    """The workers."""
    assert pool._processes is not None
    return psutil.Process(pool._processes.pid).children()


def wait_for(condition: Any, pool: GuidePool | None = None) -> None:
    end = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < end
        if pool is None:
            time.sleep(0.01)
        else:
            pool.pump(0.01)


def follow(guide: Any, plain: Any, count: int, seed: int) -> None:
    """Draw tokens from both masks, which are equal at every step."""
    draw = random.Random(seed)
    for _ in range(count):
        assert guide.error == plain.error
        assert (guide.finished, guide.complete) == (plain.finished, plain.complete)
        if plain.finished:
            return
        mask, expected = guide.mask([EOS, OP]), plain.mask([EOS, OP])
        assert (mask == expected).all()
        token = draw.choice([t for t in expected.nonzero()[0].tolist() if t not in (EOS, OP)])
        guide.accept(token)
        plain.accept(token)


# --- the masks ------------------------------------------------------------------------------------

TEXTS = st.text(alphabet='abcatop 12あい東京都🦙𠮷\n"\\<|:>', min_size=1, max_size=6)
GRAMMARS = st.one_of(
    st.builds(lambda c: GuidedParams(choice=c), st.lists(TEXTS, min_size=1, max_size=4)),
    st.sampled_from(
        [
            GuidedParams(regex="[ぁ-ん]{1,9}|(cat|category)+"),
            GuidedParams(json_object=True),
            GuidedParams(json={"type": "array", "items": {"enum": ["<|plamo:eos|>", "東京", 1]}}),
            GuidedParams(grammar='start: t ("+" t)*\nt: /[0-9]{1,2}/ | "(" start ")"'),
            GuidedParams(grammar='start: "a" x\nx: x "c"'),
        ]
    ),
)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(GRAMMARS, st.integers(0, 9), st.integers(0, 2**16))
def test_the_masks_are_the_plain_ones_also_after_a_restart(pool, params, count, seed):
    guide, plain = pool.start(params), MAKER.start(params)
    follow(guide, plain, count, seed)
    tokens = guide.tokens[: count // 2]
    guide.restart(tokens)
    plain.restart(tokens)
    follow(guide, plain, 5, seed + 1)
    guide.close()


def test_a_token_that_does_not_fit_is_refused_without_asking_anybody(pool):
    guide = pool.start(GuidedParams(choice=["cat"]))
    guide.mask([])
    with pytest.raises(GuidedError, match="token 2 does not fit"):
        guide.accept(EOS)
    assert guide.tokens == []
    guide.close()


@pytest.mark.parametrize("name", ["eos", "op"])
def test_a_control_token_s_name_is_spelt_with_text(pool, name):
    text = f"a<|plamo:{name}|>"
    plain = MAKER.start(GuidedParams(choice=[text]))
    while not plain.finished:
        allowed = plain.mask([]).nonzero()[0].tolist()
        assert not TOKENIZER.control_ids.intersection(allowed)
        plain.accept(allowed[0])
    assert TOKENIZER.decode(plain.tokens) == text


def test_a_grammar_that_names_a_control_token_gets_none(pool):
    """The library's notation can ask for tokens by number."""
    guide = settled(pool.start(GuidedParams(grammar=f"start: <[{OP}]>")))
    assert "no text fits" in guide.error
    guide.close()


# --- what a grammar costs -------------------------------------------------------------------------


@pytest.fixture
def benign(pool: GuidePool) -> Iterator[None]:
    """Somebody else's text, begun before and going on after."""
    params = GuidedParams(regex="[a-z]{40}")
    guide, plain = pool.start(params), MAKER.start(params)
    follow(guide, plain, 3, 0)
    yield
    follow(guide, plain, 20, 1)
    guide.close()


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_in_the_library_is_an_error_of_its_request(pool, benign, name):
    guide = settled(pool.start(CRASHES[name]))
    assert "the grammar library crashed (SIGSEGV)" in guide.error
    with pytest.raises(GuidedError, match="SIGSEGV"):
        guide.mask([])
    guide.close()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (GuidedParams(json='{"a":' * 5000 + "1" + "}" * 5000), "nested too deep"),
        (GuidedParams(json='{"minimum":' + "9" * 5000 + "}"), "4300 digits"),
        (GuidedParams(grammar="start: " + "(" * 9000 + '"a"' + ")" * 9000), "deeply nested"),
        (GuidedParams(regex="(" * 9000 + "a" + ")" * 9000), "invalid regex"),
    ],
    ids=["a text that nests", "a number", "parentheses", "groups"],
)
def test_what_is_too_deep_or_too_long_is_refused_in_one_short_line(pool, benign, params, why):
    guide = settled(pool.start(params))
    assert why in guide.error
    assert len(guide.error) < 800
    assert "\n" not in guide.error
    guide.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "a|" * 300_000},
        {"choice": ["c" * 100] * 6000},
        {"json": {"enum": ["v" * 100] * 6000}},
        {"grammar": "start: " + '"a"' * 200_000},
    ],
)
def test_a_grammar_s_text_is_bounded_before_anybody_reads_it(fields):
    with pytest.raises(GuidedError, match=r"characters, at most 524,288 may be"):
        GuidedParams(**fields)


def test_an_object_that_is_no_json_is_refused_where_it_is_given():
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(GuidedError, match="nested too deep"):
        GuidedParams(json=deep)
    with pytest.raises(GuidedError, match="no JSON: "):
        GuidedParams(json={"const": object()})


def test_time_is_bounded_while_others_go_on():
    pool = new_pool(compile_seconds=1.0)
    params = GuidedParams(regex="[a-z]{900}")
    guide, plain = pool.start(params), MAKER.start(params)
    slow = pool.start(ENDLESS)
    count = 0
    while not slow.is_settled:
        if count < 200:
            follow(guide, plain, 1, count)
            count += 1
        pool.pump(0.001)
    assert count > 20  # tokens that did not wait for it
    assert "too complex: more than 1 s to compile" in slow.error
    assert not guide.error


def test_memory_is_bounded():
    pool = new_pool(memory_bytes=24 << 20)
    hungry = GuidedParams(regex="|".join(f"w{i}x{i * 7}" for i in range(30_000)))
    guide = settled(pool.start(hungry))
    assert "too complex" in guide.error
    assert "24 MiB" in guide.error or "gave up" in guide.error
    assert settled(pool.start(GuidedParams(regex="[a-z]+"))).error is None


def test_many_hostile_grammars_do_not_keep_a_benign_one_from_its_turn():
    pool = new_pool(compile_seconds=0.25)
    hostile = [
        pool.start(GuidedParams(json={"type": "integer", "multipleOf": 9_999_991 + i}))
        for i in range(5)
    ]
    assert settled(pool.start(GuidedParams(choice=["cat"]))).error is None
    assert all("too complex" in settled(guide).error for guide in hostile)


def test_who_leaves_takes_the_work_along():
    pool = new_pool(compile_seconds=600.0)
    guide = pool.start(ENDLESS)
    wait_for(lambda: pool._ready and len(processes(pool)) == 1, pool)
    (worker,) = processes(pool)
    guide.close()
    wait_for(lambda: not processes(pool))
    assert not worker.is_running()


def test_few_processes_are_kept_and_a_grammar_is_compiled_once_for_all():
    pool = new_pool()
    waiting = [settled(pool.start(GuidedParams(choice=[f"cat{i}"]))) for i in range(3 * IDLE)]
    wait_for(lambda: len(processes(pool)) == IDLE, pool)
    same = [settled(pool.start(GuidedParams(choice=["cat0"]))) for _ in range(50)]
    for guide in (*same, *waiting):  # also those whose process went
        plain = MAKER.start(GuidedParams(choice=["cat0"]))
        if guide.grammar is same[0].grammar:
            follow(guide, plain, 9, 0)
        else:
            guide.accept(TOKENIZER.id_of("cat"))
            assert guide.error is None
    assert len(processes(pool)) <= 3 * IDLE
    for guide in (*same, *waiting):
        guide.close()
    wait_for(lambda: len(processes(pool)) <= IDLE, pool)


# --- processes that die ---------------------------------------------------------------------------


def worker_of(pool: GuidePool, params: GuidedParams) -> tuple[Any, psutil.Process]:
    before = {p.pid for p in processes(pool)} if pool._processes else set()
    guide = settled(pool.start(params))
    (worker,) = [p for p in processes(pool) if p.pid not in before]
    return guide, worker


def test_a_process_that_crashes_costs_the_text_that_it_worked_on():
    pool = new_pool()
    params = GuidedParams(regex="[a-z]{40}")
    first, worker = worker_of(pool, params)
    second, plain = pool.start(params), MAKER.start(params)
    follow(second, plain, 4, 0)
    settled(second)
    worker.suspend()
    first.accept(TOKENIZER.id_of("a"))  # is being worked on
    token = plain.mask([]).nonzero()[0][0]
    second.accept(token)  # comes after it
    plain.accept(token)
    worker.send_signal(signal.SIGSEGV)
    worker.resume()
    assert "the grammar library crashed (SIGSEGV)" in settled(first).error
    follow(second, plain, 30, 1)
    assert second.error is None


@pytest.mark.parametrize("working", [False, True])
def test_a_process_that_is_killed_from_outside_costs_nobody_anything(working):
    pool = new_pool()
    params = GuidedParams(regex="[a-z]{40}")
    guide, worker = worker_of(pool, params)
    plain = MAKER.start(params)
    follow(guide, plain, 4, 0)
    settled(guide)
    if working:
        worker.suspend()
        follow(guide, plain, 1, 1)
    worker.kill()
    follow(guide, plain, 30, 1)
    assert guide.error is None


def test_a_grammar_whose_process_is_killed_again_and_again_is_given_up():
    pool = new_pool(compile_seconds=600.0)
    guide = pool.start(ENDLESS)
    for _ in range(MAX_DEATHS + 1):
        wait_for(lambda: pool._ready and len(processes(pool)) == 1, pool)
        (worker,) = processes(pool)
        worker.kill()
        wait_for(lambda: not worker.is_running(), pool)  # noqa: B023
    assert "its process was killed" in settled(guide).error


def test_the_fork_server_s_death_costs_nobody_anything():
    pool = new_pool()
    params = GuidedParams(regex="[a-z]{40}")
    guide, plain = pool.start(params), MAKER.start(params)
    follow(guide, plain, 4, 0)
    assert pool._processes is not None
    os.kill(pool._processes.pid, signal.SIGKILL)
    follow(guide, plain, 30, 1)
    assert guide.error is None


def test_an_interrupt_at_any_place_loses_no_text(monkeypatch):
    """Ctrl-C between reading a message and noting it: all begins again from the tokens."""
    pool = new_pool()
    params = GuidedParams(regex="[a-z]{40}")
    guide, plain = pool.start(params), MAKER.start(params)
    follow(guide, plain, 2, 0)
    for name in ("_hear", "_look_at_the_clock", "_ask"):
        token = plain.mask([]).nonzero()[0][0]
        plain.accept(token)
        with monkeypatch.context() as patch:
            patch.setattr(pool, name, interrupted)
            with contextlib.suppress(KeyboardInterrupt):
                guide.accept(token)
                guide.wait(ENOUGH)
        follow(guide, plain, 2, 1)
    assert guide.error is None


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_nothing_outlives_the_engine_however_it_dies():
    code = (
        "import sys, time, psutil\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace as Params\n"
        "from plamo_ref.grammar.pool import GuidePool\n"
        "from plamo_ref.grammar.source import GrammarSource\n"
        "from plamo_ref.grammar.worker import WorkerLimits\n"
        "limits = WorkerLimits(compile_seconds=600.0)\n"
        "pool = GuidePool(Path(sys.argv[1]), int(sys.argv[2]), [2], limits)\n"
        "guides = [pool.start(Params(source=GrammarSource(*s))) for s in\n"
        "    (('regex', 'a+'), ('json', '{\"type\": \"integer\", \"multipleOf\": 9999991}'))]\n"
        "server = psutil.Process(pool._processes.pid)\n"
        "while len(server.children()) < 2: pool.pump(0.01)\n"
        "print(server.pid, *[p.pid for p in server.children()], flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(noise_folder()), str(V)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        family = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(family) == 3
        process.kill()
    assert psutil.wait_procs(family, timeout=20)[1] == []


def test_without_a_tokenizer_who_asks_for_a_grammar_is_told(tmp_path):
    guide = settled(GuidePool(tmp_path, V, [EOS]).start(GuidedParams(regex="a")))
    assert "tokenizer.jsonl" in guide.error


# --- engines --------------------------------------------------------------------------------------


def test_an_offline_engine_goes_on_after_every_hostile_grammar():
    llm = noise_llm()
    params = SamplingParams(seed=1, max_tokens=9)
    (alone,) = llm.generate("cat", params, use_tqdm=False)
    for guided in CRASHES.values():
        steps = llm.core.num_steps
        with pytest.raises(GuidedError, match="crashed"):
            llm.generate(["cat", "x"], [params, SamplingParams(guided=guided)], use_tqdm=False)
        assert llm.core.num_steps == steps
        assert_clean(llm)
    (again,) = llm.generate("cat", params, use_tqdm=False)
    assert again.outputs == alone.outputs


async def _texts(llm: AsyncLLM, params: SamplingParams) -> list[int]:
    return [delta.token_id async for delta in llm.deltas([Job([5, 6, 7], params)])]


def test_a_server_s_engine_survives_and_a_neighbour_s_tokens_do_not_wait():
    """The neighbour gets all its tokens while a grammar is compiled that takes five seconds."""

    async def scenario() -> None:
        engine = {"dtype": "float64", "device": "cpu", "memory_bytes": 1 << 20}
        async with AsyncLLM(noise_folder(), **engine) as llm:
            pid = llm.engine_pid
            neighbour = SamplingParams(seed=3, max_tokens=60, ignore_eos=True)
            guided = SamplingParams(seed=4, max_tokens=30, guided=GuidedParams(regex="[a-z]{60}"))
            alone = [await _texts(llm, neighbour), await _texts(llm, guided)]
            slow = asyncio.create_task(_texts(llm, SamplingParams(guided=ENDLESS)))
            await asyncio.sleep(0)
            assert [await _texts(llm, neighbour), await _texts(llm, guided)] == alone
            assert not slow.done()
            assert (await llm.audit()).num_requests == 1
            slow.cancel()  # the client leaves: so does the work
            await asyncio.wait({slow})
            assert (await llm.audit()).num_requests == 0
            deep = '{"a":' * 5000 + "1" + "}" * 5000
            for hostile in (GuidedParams(json=deep), CRASHES["a chain of references"]):
                with pytest.raises(GrammarRefusedError, match=r"guided\."):
                    await _texts(llm, SamplingParams(guided=hostile))
            dead = GuidedParams(grammar='start: "a" x\nx: x "c"')
            with pytest.raises(GrammarRefusedError, match="after 1 tokens"):
                await _texts(llm, SamplingParams(guided=dead))
            assert await _texts(llm, neighbour) == alone[0]
            assert llm.engine_pid == pid
            audited = await llm.audit()
            assert audited.problem is None
            assert audited.num_requests == 0

    asyncio.run(scenario())
