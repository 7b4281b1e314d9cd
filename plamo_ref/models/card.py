"""The model card of a trained checkpoint, and its loss curve, from the run's own record.

Invariant: every figure in the card is read from training.json, none is typed.
"""

import json
from pathlib import Path

import matplotlib.figure

CARD = """# A tiny PLaMo 2

A genuine PLaMo 2 checkpoint ({parameters:,} parameters, bfloat16): Mamba, sliding-window and
full-attention layers in one small model, trained from scratch so that every path of the engine
can be run, read and tested on a laptop. It is not derived from any published PLaMo weights.

| | |
|---|---|
| data | {sources} |
| training tokens | {training_tokens:,} in the text; {seen:,} seen ({epochs:.1f} epochs) |
| steps | {steps} of {batch} × {length} tokens |
| hardware | {machine}, {minutes:.0f} minutes, torch {torch} |
| held-out | **{bits:.3f} bits per byte** on {held_out_bytes:,} bytes that were not trained on |
| seed | {seed} |

![loss curve](loss.png)

**What it is for**: lessons, tests, demonstrations. **What it is not for**: anything else. It
writes in the manner of its books, knows nothing, and repeats phrases, and the prejudices, of texts
that are more than a century old.

Made by `python -m plamo_ref.models.train TEXT… --out FOLDER` (options in training.json).
"""


def write_card(folder: Path) -> None:
    """Write README.md and loss.png beside the training.json of `folder`."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    recipe = record["recipe"]
    seen = recipe["steps"] * recipe["batch"] * recipe["length"]
    text = CARD.format(
        **record,
        **{k: recipe[k] for k in ("steps", "batch", "length", "seed")},
        seen=seen,
        epochs=seen / record["training_tokens"],
        minutes=record["seconds"] / 60,
        bits=record["held_out_bits_per_byte"][-1][1],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    _draw_losses(record, folder / "loss.png")


def _draw_losses(record: dict, path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    losses, steps = record["losses"], record["recipe"]["steps"]
    axes.plot([i * steps / len(losses) for i in range(len(losses))], losses, lw=0.8, color="0.4")
    axes.set(xlabel="step", ylabel="training loss, nats per token")
    right = axes.twinx()
    right.plot(*zip(*record["held_out_bits_per_byte"], strict=True), "o-", color="#0072b2", ms=4)
    right.set_ylabel("held-out bits per byte", color="#0072b2")
    figure.savefig(path, dpi=100)
