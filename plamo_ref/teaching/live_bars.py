"""How full the queue, the batch and the pools are: as bars that move, and as a figure.

Invariant: a level is read from the engine or from one of its step records, and changes neither.
Used by plamo_ref/teaching/live.py and notebooks/17_serving_and_benchmarking.ipynb.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from plamo_ref.engine.llm import LLM
from plamo_ref.engine.record import StepRecord, memory_in_use
from plamo_ref.teaching.figures import GREY, figures, style_of

DRAW_SECONDS = 0.05  # a browser cannot follow more than 20 updates a second, nor can an eye


@dataclass(frozen=True)
class Level:
    """One bar: how much of something is in use. `most` None: there is no limit."""

    name: str
    used: int
    most: int | None


def levels(llm: LLM, record: StepRecord | None = None) -> list[Level]:
    """Queue, batch and memory in a step, or (without a record) at this moment."""
    queues, cache = llm.core.queues, llm.core.cache
    if record is None:
        blocks, slots = memory_in_use(cache)
        waiting, running = len(queues.waiting), len(queues.running)
    else:
        blocks, slots = dict(record.blocks_used), record.slots_used
        waiting, running = record.num_waiting, record.num_running
    found = [Level("waiting", waiting, None), Level("running", running, queues.max_num_seqs)]
    for kind, pool in cache.blocks.items():
        found.append(Level(f"{kind.replace('_', ' ')} blocks", blocks[kind], pool.capacity))
    if cache.slots is not None:
        found.append(Level("state slots", slots, cache.slots.capacity))
    return found


class Bars:
    """A bar for each level, as an ipywidgets box."""

    def __init__(self, llm: LLM) -> None:
        import ipywidgets as widgets  # here, because notebooks also work without it

        self._llm, self._drawn = llm, 0.0
        style = {"description_width": "11em"}
        first = levels(llm)
        self.bars = [
            widgets.IntProgress(description=level.name, max=level.most or 1, style=style)
            for level in first
        ]
        self.numbers = [widgets.Label() for _ in first]
        rows = [widgets.HBox(pair) for pair in zip(self.bars, self.numbers, strict=True)]
        self.box = widgets.VBox(rows)
        self.draw(first)

    def draw(self, now: Sequence[Level]) -> None:
        """Set the bars."""
        for bar, number, level in zip(self.bars, self.numbers, now, strict=True):
            if level.most is None:
                bar.max = max(bar.max, level.used)  # the queue so far
            bar.value = level.used
            number.value = f"{level.used:,}" + (f" of {level.most:,}" if level.most else "")

    def observe(self, record: StepRecord, *_: object) -> None:
        """Called by the engine after each step."""
        if time.monotonic() - self._drawn >= DRAW_SECONDS:
            self.draw(levels(self._llm, record))
            self._drawn = time.monotonic()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Follow the engine's steps; at the end, show what it still holds."""
        self._llm.core.observers.append(self.observe)
        try:
            yield
        finally:
            self._llm.core.observers.remove(self.observe)
            self.draw(levels(self._llm))


def history(llm: LLM, records: Sequence[StepRecord]) -> tuple[Figure, str]:
    """The levels of all steps: requests on the left, shares of each pool on the right."""
    fig, (left, right) = figures(9.5, 3.2)
    rows = [levels(llm, record) for record in records]
    steps = range(1, len(rows) + 1)
    words = []
    for i, now in enumerate(levels(llm)):
        used = [row[i].used for row in rows]
        top = max(used, default=0)
        words.append(f"{top}" + (f" of {now.most}" if now.most else "") + f" {now.name}")
        style = style_of(i)
        ax, scale = (left, 1.0) if i < 2 else (right, 100 / (now.most or 1))
        look: dict[str, Any] = {"color": style.colour, "linestyle": style.dash}
        look |= {"marker": style.marker, "markevery": max(1, len(rows) // 8)}
        ax.plot(steps, [n * scale for n in used], label=now.name, **look)
    left.set(xlabel="step", ylabel="requests", ylim=(0, None))
    right.set(xlabel="step", ylabel="% of the pool in use", ylim=(0, 105))
    for ax in (left, right):
        ax.grid(color=GREY, linewidth=0.5)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # beside no curve
    return fig, f"{len(rows)} steps, at the most: " + ", ".join(words)
