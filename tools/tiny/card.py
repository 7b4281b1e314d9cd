"""The model card of a trained checkpoint, and its loss curve, from the run's own record.

Invariant: every figure in the card is read from training.json, none is typed.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.figure

CARD = """# A tiny PLaMo 2

A genuine PLaMo 2 checkpoint ({parameters:,} parameters, bfloat16): Mamba, sliding-window and
full-attention layers in one small model, trained from scratch so that every path of the engine
can be run, read and tested on a laptop. It is not derived from any published PLaMo weights.

| | |
|---|---|
| data | {sources} |
{runs}
| held-out | **{bits:.3f} bits per byte** on {held_out_bytes:,} bytes that were not trained on |
{context}
![loss curve](loss.png)

**What it is for**: lessons, tests, demonstrations. **What it is not for**: anything else. It
writes in the manner of its books, knows nothing, and repeats phrases, and the prejudices, of texts
that are more than a century old.

Made by `python -m tools.tiny.train TEXT… --out FOLDER` (all options are in training.json;
a run after the first goes on from it with `--init`).
"""


RUN = (
    "| run {number} | {steps} steps of {batch} × {length} tokens ({seen:,} seen, {epochs:.1f} "
    "epochs), learning rate {learning_rate}, unindent {unindent}, seed {seed}; {machine}, "
    "{minutes:.0f} minutes, torch {torch} |"
)

# Of a record that has it, as benchmarks/context.py prints it.
CONTEXT = (
    "| context | {length:,} tokens without `max_model_len`. Trained on rows of {row} tokens, it "
    "learns nothing from what is farther back, and loses nothing by it: at positions {start:,} to "
    "{end:,} of held-out text {nats_all_context:.2f} nats a token with all the context, "
    "{nats_little_context:.2f} with the last {row} to {most} tokens of it |\n"
)

HELD_OUT: dict[str, Any] = {"color": "#0072b2", "markersize": 4}


def write_card(folder: Path) -> None:
    """Write README.md and loss.png beside the training.json of `folder`."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    runs = [record]
    while runs[0].get("before"):
        runs.insert(0, runs[0]["before"])
    text = CARD.format(
        sources=runs[0]["sources"],
        runs="\n".join(RUN.format(number=i, **_run(r)) for i, r in enumerate(runs, start=1)),
        parameters=record["parameters"],
        held_out_bytes=record["held_out_bytes"],
        bits=record["held_out_bits_per_byte"][-1][1],
        context=_context(record),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    _draw_losses(runs, folder / "loss.png")


def _run(record: dict) -> dict:
    """The fields of RUN."""
    recipe = record["recipe"]
    seen = recipe["steps"] * recipe["batch"] * recipe["length"]
    return {
        **recipe,
        "seen": seen,
        "epochs": seen / record["training_tokens"],
        "unindent": recipe.get("unindent", 0.0),
        "machine": record["machine"],
        "torch": record["torch"],
        "minutes": record["seconds"] / 60,
    }


def _context(record: dict) -> str:
    """The row of the table that tells how far back the model was measured; none if it was not."""
    if "context" not in record:
        return ""
    farthest, row = record["context"][-1], record["recipe"]["length"]
    start, length = farthest["positions"]
    return CONTEXT.format(
        **farthest, length=length, row=row, most=2 * row - 1, start=start, end=length - 1
    )


def _draw_losses(runs: list[dict], path: Path) -> None:
    """All runs, one after the other."""
    figure = matplotlib.figure.Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    right = axes.twinx()
    start = 0
    for record in runs:
        losses, steps = record["losses"], record["recipe"]["steps"]
        places = [start + i * steps / len(losses) for i in range(len(losses))]
        axes.plot(places, losses, lw=0.8, color="0.4")
        held_out = record["held_out_bits_per_byte"]
        right.plot([start + s for s, _ in held_out], [b for _, b in held_out], "o-", **HELD_OUT)
        start += steps
    axes.set(xlabel="step", ylabel="training loss, nats per token")
    right.set_ylabel("held-out bits per byte", color=HELD_OUT["color"])
    figure.savefig(path, dpi=100)
