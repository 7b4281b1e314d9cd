"""The chat and the bars of notebook 17, without a browser: clicks are simulated.

Invariant tested: an answer streams while the kernel stays awake, Stop leaves the engine clean, all
engine work is done by one thread, and what is shown without a kernel is the same every time.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from plamo_ref import LLM, SamplingParams
from plamo_ref.teaching import live, live_bars
from plamo_ref.teaching.live import Chat, chat_widget, live_panel
from plamo_ref.teaching.live_bars import Bars, levels
from tools.course.execute import execute

PROMPT = "It was <the> best & the"
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", device="cpu", dtype="float32", max_num_seqs=2, memory_bytes=16 << 20)


@pytest.fixture(autouse=True)
def _left_clean(llm: LLM) -> Iterator[None]:
    yield
    assert clean(llm)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    monkeypatch.setattr(live, "show", lambda fig, alt: shown.append({"alt": alt}))
    return shown


def clean(llm: LLM) -> bool:
    llm.core.cache.check_integrity()
    idle = all(level.used == 0 for level in levels(llm))
    return idle and not (llm.core.requests or llm._callers.completions or llm.core.observers)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0)


@asynccontextmanager
async def chatting(llm: LLM, params: SamplingParams, prompt: str = PROMPT) -> AsyncIterator[Chat]:
    """A chat whose Send has been clicked; at the end, its answer is awaited."""
    chat = Chat(llm, asyncio.get_running_loop(), params, prompt)
    chat.send.click()
    await until(lambda: chat.task is not None)
    assert (chat.send.disabled, chat.stop.disabled) == (True, False)
    yield chat
    assert chat.task is not None
    await asyncio.wait_for(chat.task, 30)
    assert (chat.send.disabled, chat.stop.disabled) == (False, True)
    assert [bar.value for bar in chat.bars.bars] == [0] * len(chat.bars.bars)


# --- the chat -------------------------------------------------------------------------------------


def test_an_answer_streams_into_the_transcript_as_generate_gives_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "DRAW_SECONDS", 0.0)
    (whole,) = llm.generate(PROMPT, SHORT, use_tqdm=False)
    seen: list[str] = []

    async def main() -> str:
        async with chatting(llm, SHORT) as chat:
            chat.transcript.observe(lambda change: seen.append(change["new"]), names="value")
        return chat.transcript.value

    last = asyncio.run(main())
    assert f"<b>{escape(PROMPT)}</b>{escape(whole.outputs[0].text)} <i>(length)</i>" in last
    assert len(seen) > 6
    assert "▌" in seen[0]
    assert [len(text) for text in seen[:-1]] == sorted(len(text) for text in seen[:-1])
    assert capsys.readouterr().out == ""


def test_stop_in_mid_stream_frees_everything(llm: LLM) -> None:
    async def main() -> str:
        async with chatting(llm, LONG) as chat:
            await until(lambda: "▌" in chat.transcript.value)
            assert len(llm.core.requests) == 1
            assert levels(llm)[-1].used == 1  # its state slot
            (request,) = llm.core.requests.values()
            chat.stop.click()
        assert request.finish_reason == "abort"
        assert 0 < len(request.output_ids) < LONG.max_tokens
        return chat.transcript.value

    assert "(abort)" in asyncio.run(main())
    assert clean(llm)


def test_stop_before_the_first_token_is_obeyed(llm: LLM) -> None:
    async def main() -> str:
        async with chatting(llm, LONG) as chat:
            chat.abort()
        return chat.transcript.value

    assert "(abort)" in asyncio.run(main())


def test_an_answer_that_is_cancelled_frees_everything(llm: LLM) -> None:
    async def main() -> None:
        chat = Chat(llm, asyncio.get_running_loop(), LONG, PROMPT)
        chat.start()
        await until(lambda: "▌" in chat.transcript.value)
        assert chat.task is not None
        chat.task.cancel()
        await asyncio.wait([chat.task])
        assert clean(llm)

    asyncio.run(main())


def test_clicks_from_another_thread_leave_the_engine_to_the_kernels(llm: LLM) -> None:
    threads: set[int] = set()
    core = llm.core
    original = core.finish

    def finish(*args: Any) -> None:
        threads.add(threading.get_ident())
        original(*args)

    async def main() -> None:
        core.finish = finish  # type: ignore[method-assign]
        core.observers.append(lambda *_: threads.add(threading.get_ident()))
        async with chatting(llm, LONG) as chat:
            await until(lambda: bool(chat.transcript.value))
            await asyncio.to_thread(chat.stop.click)

    try:
        asyncio.run(main())
    finally:
        core.finish = original  # type: ignore[method-assign]
        core.observers.clear()
    assert threads == {threading.get_ident()}


def test_the_kernel_stays_awake_and_one_answer_runs_at_a_time(llm: LLM) -> None:
    async def main() -> None:
        turns = 0
        async with chatting(llm, SHORT) as chat:
            first = chat.task
            chat.send.click()
            while chat.task and not chat.task.done():
                turns += 1
                await asyncio.sleep(0)
            assert chat.task is first
        assert turns >= SHORT.max_tokens
        chat.prompt.value = "second"
        chat.start()
        assert chat.task is not None
        await chat.task
        assert chat.transcript.value.count("<p>") == 2
        assert chat.transcript.value.index("second") > chat.transcript.value.index("best")

    asyncio.run(main())


def test_a_prompt_that_cannot_run_says_why_in_the_transcript(llm: LLM) -> None:
    async def main() -> str:
        async with chatting(llm, SHORT, "x " * 2 * llm.core.max_model_len) as chat:
            pass
        return chat.transcript.value

    assert "output together may have" in asyncio.run(main())


def test_another_generation_meanwhile_changes_nothing(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPT, SHORT, use_tqdm=False)

    async def main() -> str:
        async with chatting(llm, SHORT) as chat:
            await until(lambda: bool(chat.transcript.value))
            llm.generate(["other", "more"], SHORT, use_tqdm=False)
        return chat.transcript.value

    assert escape(whole.outputs[0].text) in asyncio.run(main())


def test_without_a_kernel_an_example_is_shown_the_same_every_time(
    llm: LLM, displayed: list[dict[str, Any]]
) -> None:
    for _ in range(2):
        chat_widget(llm, PROMPT, SamplingParams(temperature=0.9, max_tokens=50))
    first, second = displayed
    assert first == second
    assert set(first) == {"text/plain"}
    assert f"you     {PROMPT}\nmodel   " in first["text/plain"]
    assert "(24 tokens, a piece of text with each; length)" in first["text/plain"]


# --- the bars -------------------------------------------------------------------------------------


def three(llm: LLM) -> None:
    llm.generate([[9] * 5, [9] * 20, [9] * 3], SHORT, use_tqdm=False)


def test_the_panel_keeps_the_records_and_shows_their_figure(
    llm: LLM, displayed: list[dict[str, Any]]
) -> None:
    with live_panel(llm) as records:
        three(llm)
    bars, figure = displayed
    assert set(bars) == {"text/plain"}
    assert bars["text/plain"].startswith("[bars, with a live kernel] waiting, running, ")
    assert max(record.num_waiting for record in records) == 1  # two seats, three requests
    alt = figure["alt"]
    assert alt.startswith(f"{len(records)} steps, at the most: 1 waiting, 2 of 2 running, ")
    assert alt.endswith("2 of 2 state slots")


def test_the_bars_move_while_the_engine_works_and_end_at_zero(
    llm: LLM, displayed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "widgets_can_live", lambda: True)
    monkeypatch.setattr(live_bars, "DRAW_SECONDS", 0.0)
    made: list[Bars] = []
    seen: dict[str, list[int]] = {}

    def bars_of(engine: LLM) -> Bars:
        made.append(Bars(engine))
        for bar in made[0].bars:
            values = seen.setdefault(bar.description, [])
            bar.observe(lambda change, values=values: values.append(change["new"]), names="value")
        return made[0]

    monkeypatch.setattr(live, "Bars", bars_of)
    with live_panel(llm) as records:
        three(llm)
    assert displayed[0][VIEW]["model_id"] == made[0].box.model_id
    for name, number in (("waiting", "num_waiting"), ("running", "num_running")):
        assert max(seen[name]) == max(getattr(record, number) for record in records)
    for kind in llm.core.cache.blocks:
        most = max(record.blocks_used[kind] for record in records)
        assert max(seen[f"{kind.replace('_', ' ')} blocks"]) == most > 0
    assert max(seen["state slots"]) == 2
    assert all(values[-1] == 0 for values in seen.values())
    assert [number.value.partition(" ")[0] for number in made[0].numbers] == ["0"] * len(seen)


def test_a_panel_whose_work_fails_lets_go_of_the_engine(
    llm: LLM, displayed: list[dict[str, Any]]
) -> None:
    with pytest.raises(ZeroDivisionError), live_panel(llm):
        1 / 0  # noqa: B018
    assert len(displayed) == 1  # no figure
    assert not llm.core.observers


def test_the_pause_slows_every_step(llm: LLM, displayed: list[dict[str, Any]]) -> None:
    began = time.monotonic()
    with live_panel(llm, pause=0.02) as records:
        three(llm)
    assert time.monotonic() - began > 0.02 * len(records)


# --- in a kernel ----------------------------------------------------------------------------------

CELLS = (
    """
import asyncio
from plamo_ref import LLM, SamplingParams
from plamo_ref.teaching.live import Chat, chat_widget, live_panel
llm = LLM("tiny", device="cpu", dtype="float64", max_num_seqs=2, memory_bytes=16 << 20)
params = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)""",
    "chat_widget(llm)",
    "with live_panel(llm):\n    llm.generate('a', SamplingParams(max_tokens=3), use_tqdm=False)",
    "chat = Chat(llm, asyncio.get_running_loop(), params)\nchat.prompt.value = 'ab'\n"
    "chat.send.click()",
    "await asyncio.sleep(0.2)\nprint(chat.stop.disabled, len(llm.core.requests))\n"
    "chat.stop.click()",
    "await chat.task\nprint('(abort)' in chat.transcript.value, len(llm.core.requests))",
)


def test_in_a_kernel_a_chat_goes_on_between_cells(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    cells = [new_code_cell(text.strip(), id=f"step-{i}") for i, text in enumerate(CELLS)]
    nbformat.write(new_notebook(cells=cells), path)
    execute(path)
    outputs = [cell.outputs for cell in nbformat.read(path, as_version=4).cells]
    assert outputs[0] == outputs[3] == []
    assert outputs[4][0].text == "False 1\n"  # Stop can be clicked, the request is in the engine
    assert outputs[5][0].text == "True 0\n"
    assert "24 tokens" in outputs[1][0].data["text/plain"]
    assert set(outputs[2][0].data) == {"text/plain"}
    assert "widget-view" not in path.read_text(encoding="utf-8")
