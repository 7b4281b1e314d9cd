"""A chat that streams and bars that move: an engine in this kernel, watched while it works.

Invariant: the engine is touched by the kernel's main thread alone, whatever thread a click arrives
on; a stopped answer leaves nothing in it; and what a cell shows without a kernel (a transcript, a
figure) holds the same facts and is the same every time.
Used by notebooks/17_serving_and_benchmarking.ipynb.
"""

import asyncio
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from html import escape
from typing import Any, cast

from plamo_ref.engine.llm import LLM
from plamo_ref.engine.outputs import StreamPiece
from plamo_ref.engine.record import StepRecord
from plamo_ref.errors import PlamoRefError
from plamo_ref.sampling import SamplingParams
from plamo_ref.teaching.figures import show
from plamo_ref.teaching.live_bars import DRAW_SECONDS, Bars, history, levels
from plamo_ref.teaching.widgets import widgets_can_live

EXAMPLE_TOKENS = 24  # of the transcript that stands for the chat where no kernel runs


# --- the panel ------------------------------------------------------------------------------------


@contextmanager
def live_panel(llm: LLM, *, pause: float = 0.0) -> Iterator[list[StepRecord]]:
    """Watch what the engine does inside the `with`: bars meanwhile, a figure of it afterwards.

    Args:
        pause: seconds to wait after each step, so that an eye can follow a small model.

    Yields the records of the steps, as they come. The figure is shown without a kernel as well.
    """
    records: list[StepRecord] = []

    def keep(record: StepRecord, *_: object) -> None:
        records.append(record)
        time.sleep(pause)

    bars = Bars(llm) if widgets_can_live() else None
    names = ", ".join(level.name for level in levels(llm))
    _display(f"[bars, with a live kernel] {names}", bars.box if bars else None)
    with bars.attached() if bars else nullcontext():  # before `keep`: draw first, then pause
        llm.core.observers.append(keep)
        try:
            yield records
        finally:
            llm.core.observers.remove(keep)
    show(*history(llm, records))


# --- the chat -------------------------------------------------------------------------------------


class Chat:
    """A text box, Send, Stop, the transcript, and the bars. `box` is the ipywidgets box.

    Answers are made in `loop`, the kernel's own, one token at a time; between two tokens the kernel
    reads its messages, so a click on Stop, or another cell, gets its turn.
    """

    def __init__(
        self, llm: LLM, loop: asyncio.AbstractEventLoop, params: SamplingParams, prompt: str = ""
    ) -> None:
        import ipywidgets as widgets

        self._llm, self._loop, self._params = llm, loop, params
        self.prompt = widgets.Text(value=prompt, description="you", layout={"width": "70%"})
        self.send = widgets.Button(description="Send", tooltip="let the model go on from here")
        self.stop = widgets.Button(description="Stop", tooltip="abort the answer", disabled=True)
        self.transcript = widgets.HTML()
        self.bars = Bars(llm)
        row = widgets.HBox([self.prompt, self.send, self.stop])
        self.box = widgets.VBox([row, self.transcript, self.bars.box])
        # JupyterLab may deliver clicks on a thread of their own; the engine knows only one.
        self.send.on_click(lambda _: loop.call_soon_threadsafe(self.start))
        self.stop.on_click(lambda _: loop.call_soon_threadsafe(self.abort))
        self.task: asyncio.Task[None] | None = None
        self._past, self._request_id = "", ""
        self._stopped = False

    def start(self) -> None:
        """Begin an answer, unless one is under way. In the loop's thread."""
        if self.task is None or self.task.done():
            self._stopped, self._request_id = False, ""
            self.send.disabled, self.stop.disabled = True, False
            self.task = self._loop.create_task(self._answer(self.prompt.value))

    def abort(self) -> None:
        """End the answer now; its request leaves the engine. In the loop's thread."""
        self._stopped = True
        if self._request_id:
            self._llm.abort(self._request_id)

    async def _answer(self, prompt: str) -> None:
        text, note, drawn = "", "", 0.0
        try:
            # `stream` is a generator: closing it aborts what still runs, however this ends.
            stream = cast("Generator[StreamPiece]", self._llm.stream(prompt, self._params))
            with self.bars.attached(), closing(stream) as pieces:
                for piece in pieces:
                    self._request_id = piece.request_id
                    text, note = text + piece.text, piece.finish_reason or ""
                    if time.monotonic() - drawn >= DRAW_SECONDS:
                        self._draw(prompt, text, "")
                        drawn = time.monotonic()
                    await asyncio.sleep(0)  # the kernel's turn
                    if self._stopped:
                        self._llm.abort(self._request_id)  # nothing, if a click has done it
        except PlamoRefError as error:
            note = str(error)
        finally:
            self._past = self._draw(prompt, text, note)
            self.send.disabled, self.stop.disabled = False, True

    def _draw(self, prompt: str, text: str, note: str) -> str:
        ending = f" <i>({escape(note)})</i>" if note else " ▌"
        turn = f"<p><b>{escape(prompt)}</b>{escape(text)}{ending}</p>"
        self.transcript.value = f'<div style="white-space: pre-wrap">{self._past}{turn}</div>'
        return self._past + turn


def chat_widget(
    llm: LLM, prompt: str = "吾輩は猫である。", params: SamplingParams | None = None
) -> None:
    """Show an example of an answer and, with ipywidgets and a kernel, a chat to try one's own.

    A base model has no turns of a conversation: it goes on from the text that it is given.

    Args:
        params: of the chat; the example is greedy and has 24 tokens.

    Raises:
        PlamoRefError: the engine cannot run the prompt.
    """
    params = params or SamplingParams(max_tokens=200, temperature=0.8)
    example = replace(params, temperature=0, n=1, max_tokens=EXAMPLE_TOKENS, ignore_eos=True)
    pieces = list(llm.stream(prompt, example))
    text = "".join(piece.text for piece in pieces).replace("\n", "⏎")
    lines = [
        f"you     {prompt}",
        f"model   {text}",
        f"        ({len(pieces)} tokens, a piece of text with each; {pieces[-1].finish_reason})",
        "[chat, with a live kernel] a text box, Send, Stop, the transcript, the bars of the engine",
    ]
    box = None
    if widgets_can_live():
        box = Chat(llm, asyncio.get_running_loop(), params, prompt).box
    _display("\n".join(lines), box)


def _display(text: str, box: Any) -> None:
    """The text for everybody, and in its place the box where widgets work."""
    bundle: dict[str, Any] = {"text/plain": text}
    if box is not None:
        view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
        bundle["application/vnd.jupyter.widget-view+json"] = view
    from IPython.display import display  # here: who only times kernels needs none

    display(bundle, raw=True)
