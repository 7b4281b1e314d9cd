"""scrub(): recorded runs side by side, step by step: queue, budget, blocks, slots, and known texts.

Invariant: every number and colour is read from the recorded run; a request looks the same in all
panels and in all runs, and its letter stands wherever its colour does.
Used by notebooks/08b_your_engine.ipynb; the panels are in plamo_ref/teaching/panels.py.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from plamo_ref.recorder.run import Moment, Run
from plamo_ref.teaching import panels
from plamo_ref.teaching.figures import png, use_style
from plamo_ref.teaching.widgets import interactive

WIDTH, TITLE = 5.0, 0.42  # inches: a run, the room above a panel
MOST_CELLS = 600  # blocks of a pool that is drawn place by place; more are numbers only


def scrub(*runs: Run, step: int = 1, times: bool = True) -> None:
    """Show runs at a step, with a slider through all of them where a kernel runs.

    Args:
        runs: with the same requests, as V0 and V1 on one trace.
        step: counted from 1; where the figure without a kernel stands.
        times: say how long the step took; without it two runs of a lesson give the same picture.

    Raises:
        ValueError: no run, or one without a step.
    """
    if not runs or not all(run.moments for run in runs):
        raise ValueError("scrub: give it runs of at least one step, as read_run() does")
    most = max(len(run.moments) for run in runs)
    interactive(lambda step: frame(runs, step, times), step=(1, most, step))


def frame(runs: Sequence[Run], step: int, times: bool = True) -> tuple[Figure, str]:
    """The picture of one step, and what it shows in one line. A run that is over stays at its end.

    A panel: the whole run with a frame around this step, the step's budget, who waits, who has
    which block and slot, and the texts that are known.
    """
    use_style()
    letters = panels.letters(name for run in runs for name in run.requests)
    parts = max(map(parts_of, runs), key=len)
    heights = [height_of(name, runs, letters) for name in parts]
    wide, tall = WIDTH * len(runs), sum(heights) + TITLE * len(parts) + 0.3
    fig = Figure(figsize=(wide, tall))
    said = []
    for column, run in enumerate(runs):
        here, top = min(step, len(run.moments)) - 1, tall
        for name, height in zip(parts, heights, strict=True):
            top -= TITLE + height
            left, width = WIDTH * column + 0.35, WIDTH - 0.5
            # Every step has its panels at the same place, or they would jump from one to the next.
            ax = fig.add_axes((left / wide, top / tall, width / wide, height / tall))
            draw = panels.PANELS[name.partition(":")[0]]
            draw(ax, run, here, letters, name.partition(":")[2])
            if name == "steps" and times:
                took = 1000 * run.moments[here].record.total_seconds
                ax.set_title(f"{took:,.1f} ms", loc="right", fontsize=11)
        said.append(words(run, here, letters))
    return fig, "; ".join(said)


def parts_of(run: Run) -> list[str]:
    """The panels that a run has anything for."""
    kinds = [f"blocks:{k}" for k in run.header.blocks if panels.touched(run, k) <= MOST_CELLS]
    slots = ["slots"] if run.header.slots else []
    return ["steps", "budget", "queue", *kinds, *slots, *(["texts"] if panels.knows(run) else [])]


def height_of(name: str, runs: Sequence[Run], letters: panels.Letters) -> float:
    """Inches of a panel without its title, the same in all columns."""
    part, _, kind = name.partition(":")
    if part == "blocks":
        most = max(panels.touched(run, kind) for run in runs)
        return 0.36 * -(-most // panels.COLUMNS)
    return {"steps": 0.24 * len(letters), "texts": 1.2}.get(part, 0.36)


def words(run: Run, here: int, letters: panels.Letters) -> str:
    """A step of a run in words."""
    moment: Moment = run.moments[here]
    record = moment.record
    shares = " ".join(f"{letters[s.request_id]}{s.num_tokens}" for s in record.scheduled)
    waiting = " ".join(letters[name] for name in moment.waiting if name in letters) or "nobody"
    used = ", ".join(f"{n} {k.replace('_', ' ')} blocks" for k, n in record.blocks_used.items())
    head = f"{run.header.scheduler.upper()} step {here + 1} of {len(run.moments)}"
    return f"{head}: {shares}, {record.num_tokens} of {run.header.budget} tokens; waiting: " + (
        f"{waiting}; {used}, {record.slots_used} slots"
    )


def film(runs: Sequence[Run], path: str | Path, seconds: float = 0.5) -> None:
    """Every step as a moving picture (GIF), to be sent to somebody without a notebook."""
    most = max(len(run.moments) for run in runs)
    drawn = [Image.open(io.BytesIO(png(frame(runs, step)[0]))) for step in range(1, most + 1)]
    size = max(image.size for image in drawn)
    frames = [image.convert("RGB").resize(size).quantize(64) for image in drawn]
    duration = [round(1000 * seconds)] * (most - 1) + [3000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)
