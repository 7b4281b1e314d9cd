"""The picture at the head of README.md: `python -m plamo_ref.teaching.overview docs/overview.png`.

Invariant: what it shows is computed: the layers are those of the embedded model's config, the steps
those of the real scheduler on a real cache.
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from plamo_ref.bench.simulator import Trace, replay
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.engine.record import StepRecord
from plamo_ref.intake.hub import find
from plamo_ref.teaching.figures import style_of

STATIONS = (
    ("text", "text/tokenizer.py"),
    ("Request", "engine/request.py"),
    ("Schedule", "engine/scheduling/scheduler_v1.py"),
    ("memory", "engine/memory/cache.py"),
    ("batch", "engine/batching.py"),
    ("layers", "model.py, kernels/"),
    ("token ids", "engine/tokens.py"),
    ("text", "text/stream.py"),
)
TRACE = Trace.of((8, 4), (5, 6), (9, 3), (4, 5, 3), (12, 4, 4))
BUDGET = 10


def overview(config: Plamo2Config) -> Figure:
    """The walk of a request, one schedule under V1, the layers and their memory."""
    fig = Figure(figsize=(11, 5.6), layout="constrained", facecolor="white")
    walk, steps, layers = fig.subplots(3, 1, height_ratios=(1.1, 2.6, 1.5))
    _draw_walk(walk)
    _draw_steps(steps, _records(config))
    _draw_layers(layers, config)
    return fig


def words(fig: Figure) -> str:
    """All that the picture says, which its file has with it: so that one sees when it is old."""
    fig.draw_without_rendering()
    said = (text.get_text() for text in fig.findobj(Text))
    return "\n".join(each for each in said if isinstance(each, str) and each)


def _records(config: Plamo2Config) -> list[StepRecord]:
    engine = EngineConfig(max_num_batched_tokens=BUDGET, max_num_seqs=4, block_size=4)
    plan = plan_memory(config, engine, 8_000_000, dtype=torch.float32, state_dtype=torch.float32)
    return replay(TRACE, engine, plan)


def _draw_walk(ax: Axes) -> None:
    ax.set(xlim=(0, len(STATIONS)), ylim=(0, 1))
    ax.axis("off")
    box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef3f8", "edgecolor": "#0072b2"}
    for i, (noun, file) in enumerate(STATIONS):
        ax.text(i + 0.5, 0.66, noun, ha="center", va="center", fontsize=11, bbox=box)
        name = file.replace("/scheduler", "/\nscheduler").replace("/cache", "/\ncache")
        ax.text(i + 0.5, 0.2, name, ha="center", va="top", fontsize=8, family="monospace")
        if i:
            arrow = {"arrowstyle": "->", "color": "#555555"}
            ax.annotate("", (i + 0.1, 0.66), (i - 0.1, 0.66), arrowprops=arrow)


def _draw_steps(ax: Axes, records: list[StepRecord]) -> None:
    for record in records:
        for share in record.scheduled:
            row = int(share.request_id)
            style = style_of(share.kind)
            ax.barh(
                row,
                0.94,
                left=record.step + 0.03,
                height=0.8,
                color=style.colour,
                hatch=style.hatch,
                edgecolor="white",
            )
            ax.text(
                record.step + 0.5,
                row,
                str(share.num_tokens),
                ha="center",
                va="center",
                fontsize=11,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
            )
    totals = [f"{r.num_tokens}" for r in records]
    ax.set_xticks([r.step + 0.5 for r in records], totals)
    ax.set_yticks(range(len(TRACE.requests)), [f"request {i}" for i in range(len(TRACE.requests))])
    ax.invert_yaxis()
    ax.set_xlabel(
        f"tokens computed in each step (budget {BUDGET}): plain = prompt, hatched = decode"
    )
    ax.spines[["top", "right"]].set_visible(False)


def _draw_layers(ax: Axes, config: Plamo2Config) -> None:
    names = {
        "mamba": "Mamba: one state slot, constant",
        "sliding_window": f"window: the last {config.attention_window_size} tokens' blocks",
        "full": "full attention: all blocks",
    }
    for i, kind in enumerate(config.layer_kinds):
        style = style_of(kind)
        label = names.pop(kind, None)
        ax.bar(
            i, 1, width=0.9, color=style.colour, hatch=style.hatch, edgecolor="white", label=label
        )
    ax.set(yticks=[], ylim=(0, 1), xlim=(-0.6, config.num_hidden_layers - 0.4))
    ax.set_xticks(
        range(config.num_hidden_layers), [f"layer {i}" for i in range(config.num_hidden_layers)]
    )
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.42), ncols=3, frameon=False, fontsize=11)


def main() -> None:
    """Draw it into the file that the command line names."""
    config = Plamo2Config.from_file(find("tiny") / "config.json")
    fig = overview(config)
    metadata = {"Software": None, "Description": words(fig)}
    fig.savefig(Path(sys.argv[1]), dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
