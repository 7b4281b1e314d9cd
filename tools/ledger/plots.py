"""The pictures of docs/ledger.md, drawn from the records.

Invariant: what is drawn is a record's number; each picture says in words what it shows, and carries
the digest of the records that it was drawn from, so that a test can tell an old one.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plamo_ref.teaching.figures import BLACK, BLUE, GREY, figures, style_of
from tools.ledger.ablation import bought
from tools.ledger.exactness import draw_deviations
from tools.ledger.peer import gain, name_of
from tools.ledger.records import Row, read_record

Data = Mapping[str, Sequence[Row]]  # by the record's name
SHAPES = ("8b", "1b")
SOURCE = "Source"  # of the digest, among the PNG's words


@dataclass(frozen=True)
class Plot:
    """A picture: the records that it shows, and how it is drawn. It says its own alt text."""

    records: tuple[str, ...]
    draw: Callable[[Data], tuple[Figure, str]]

    def data(self, folder: Path) -> Data:
        return {name: read_record(folder / f"{name}.json").rows for name in self.records}

    def digest(self, folder: Path) -> str:
        files = b"".join((folder / f"{name}.json").read_bytes() for name in self.records)
        return hashlib.sha256(files).hexdigest()


def png(figure: Figure, digest: str) -> bytes:
    """The picture in a palette of 64 colours, with the digest of what it was drawn from."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=132)
    words = PngInfo()
    words.add_text(SOURCE, digest)
    picture = Image.open(full).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True, pnginfo=words)
    return small.getvalue()


def digest_of(path: Path) -> str:
    with Image.open(path) as picture:
        return str(picture.info[SOURCE])


# --- decode and prefill against their floors -----------------------------------------------------


def draw_decode(data: Data) -> tuple[Figure, str]:
    """ms a step by batch: both kinds of state, and the floor of each."""
    fig, axes = figures(9.5, 3.6)
    for ax, shape in zip(axes, SHAPES, strict=True):
        for i, (name, state) in enumerate((("", "float32 state"), ("_bf16", "bfloat16 state"))):
            rows = data[f"gpu_decode_{shape}{name}"]
            batches = [r["batch"] for r in rows]
            _line(ax, i, batches, [r["step_ms"] for r in rows], state)
            _floor(ax, i, batches, [r["floor_ms"] for r in rows], f"floor, {state}")
        ax.set(title=f"{shape.upper()} shape", xlabel="requests in the batch", ylim=(0, None))
        ax.set_xticks([1, 32, 128, 256])
    axes[0].set_ylabel("ms a decode step")
    axes[0].legend(loc="lower right")
    said = "; ".join(
        f"{shape.upper()}, float32 state, batch "
        + ", ".join(
            f"{r['batch']}: {r['step_ms']:.1f} ms (floor {r['floor_ms']:.1f})"
            for r in data[f"gpu_decode_{shape}"]
        )
        for shape in SHAPES
    )
    return fig, f"Milliseconds of a decode step by batch, with the floor. {said}"


def draw_prefill(data: Data) -> tuple[Figure, str]:
    """Thousands of tokens a second by the length of a prompt, and the floor's speed."""
    fig, axes = figures(9.5, 3.6)
    for ax, shape in zip(axes, SHAPES, strict=True):
        rows = data[f"gpu_prefill_{shape}"]
        lengths = [r["prompt_len"] for r in rows]
        _line(ax, 0, lengths, [r["tokens_per_s"] / 1e3 for r in rows], "this engine")
        floors = [r["floor_tokens_per_s"] / 1e3 for r in rows]
        _floor(ax, 0, lengths, floors, "at the floor's speed")
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30)
        ax.minorticks_off()
        ax.set(title=f"{shape.upper()} shape", xlabel="tokens of the prompt", ylim=(0, None))
    axes[0].set_ylabel("thousand tokens a second")
    axes[0].legend(loc="lower right")
    said = "; ".join(
        f"{shape.upper()}: "
        + ", ".join(
            f"{r['prompt_len']:,} tokens {r['percent_of_floor']:.0f} %"
            for r in data[f"gpu_prefill_{shape}"]
        )
        for shape in SHAPES
    )
    return fig, f"Prefill in tokens a second by prompt length; share of the floor's speed: {said}"


def _line(ax: Axes, index: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    style = style_of(index)
    ax.plot(x, y, color=style.colour, marker=style.marker, linestyle="-", label=label)


def _floor(ax: Axes, index: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    ax.plot(x, y, color=style_of(index).colour, marker="", linestyle=":", label=label)


# --- what each optimisation buys -----------------------------------------------------------------


def draw_ablation(data: Data) -> tuple[Figure, str]:
    """How much longer a step takes with one thing off: a panel a batch, one order for all."""
    rows = [r for r in data["gpu_ablation_8b"] if r["off"] != "nothing"]
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    longer = {(r["off"], r["batch"]): r["buys_percent"] for r in rows}
    said = {(r["off"], r["batch"]): bought(r, data["gpu_ablation_8b"]) for r in rows}
    names = sorted(dict.fromkeys(r["off"] for r in rows), key=lambda n: longer[n, batches[0]])
    fig, axes = figures(10.5, 5.2, columns=len(batches))
    top = max(longer.values())
    for ax, batch in zip(axes, batches, strict=True):
        colours = [GREY if said[n, batch].startswith("(") else BLUE for n in names]
        lengths = [longer[n, batch] for n in names]
        bars = ax.barh(range(len(names)), lengths, color=colours, height=0.7)
        ax.bar_label(bars, [said[n, batch] for n in names], padding=4)
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set(title=f"batch {batch}", xlim=(-0.36 * top, 1.3 * top), xticks=[])
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [])
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.tick_params(length=0)
    words = ", ".join(f"{n} {' / '.join(said[n, b] for b in batches)}" for n in names[::-1])
    told = f"batch {' / '.join(map(str, batches))}"
    return (
        fig,
        f"How much longer an 8B decode step takes with one thing switched off, {told}: {words}",
    )


# --- the server ----------------------------------------------------------------------------------


def draw_server(data: Data) -> tuple[Figure, str]:
    """p50 and p99 of both waits, by load."""
    rows = [r for r in data["gpu_server_8b"] if r["what"] == "load"]
    rates = [r["requests_per_s"] for r in rows]
    fig, axes = figures(9.5, 3.4)
    waits = (("ttft_ms", "to the first token"), ("itl_ms", "between two tokens"))
    for ax, (key, title) in zip(axes, waits, strict=True):
        for i, (p, told) in enumerate((("p99", "p99"), ("p50", "median"))):
            values = [r[key][p] for r in rows]
            style = style_of(1 - i)
            ax.plot(rates, values, color=style.colour, marker=style.marker, linestyle="-")
            where = (rates[-1], values[-1])
            ax.annotate(f"{told} {values[-1]:.0f}", where, (8, 0), textcoords="offset points")
        ax.set_xscale("log", base=2)
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
        ax.set(title=title, xlabel="requests a second", ylim=(0, None))
        ax.set_xlim(rates[0] * 0.8, rates[-1] * 2.4)
    axes[0].set_ylabel("ms")
    said = "; ".join(
        f"{r['requests_per_s']:g}/s first token {r['ttft_ms']['p50']:.0f} / "
        f"{r['ttft_ms']['p99']:.0f}, between tokens {r['itl_ms']['p50']:.0f} / "
        f"{r['itl_ms']['p99']:.0f}"
        for r in rows
    )
    return fig, f"What a client of the 8B server waits for by load, median / p99 in ms: {said}"


# --- the peer ------------------------------------------------------------------------------------


def draw_peer(data: Data) -> tuple[Figure, str]:
    """Times as fast as vLLM, on a logarithmic axis that begins where both are level."""
    fig, axes = figures(10.5, 4.4)
    said = []
    for ax, shape in zip(axes, SHAPES, strict=True):
        rows = [r for r in data["gpu_peer"] if r.get("model") == shape and r["what"] != "server"]
        rows = list({name_of(r): r for r in reversed(rows)}.values())  # the first of each name
        gains = [gain(r) for r in rows]
        ax.hlines(range(len(rows)), 1, gains, color=BLUE, linewidth=2)
        ax.plot(gains, range(len(rows)), "o", color=BLUE)
        for y, times in enumerate(gains):
            ax.annotate(
                f"{times:.2f}×", (times, y), (8, 0), textcoords="offset points", va="center"
            )
        ax.axvline(1, color=BLACK, linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xticks([1, 2, 4, 8], ["level", "2×", "4×", "8×"])
        ax.minorticks_off()
        ax.set(title=f"{shape.upper()} shape", xlim=(min(0.95, *gains), 24))
        ax.set_yticks(range(len(rows)), [name_of(r) for r in rows])
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        pairs = [f"{name_of(r)}: {g:.2f}×" for r, g in zip(rows, gains, strict=True)]
        said.append(f"{shape.upper()} shape: {'; '.join(reversed(pairs))}")
    return fig, f"Times as fast as vLLM on the same card. {'. '.join(said)}"


PLOTS: Mapping[str, Plot] = {
    "peer": Plot(("gpu_peer",), draw_peer),
    "decode": Plot(
        tuple(f"gpu_decode_{shape}{state}" for shape in SHAPES for state in ("", "_bf16")),
        draw_decode,
    ),
    "prefill": Plot(tuple(f"gpu_prefill_{shape}" for shape in SHAPES), draw_prefill),
    "ablation": Plot(("gpu_ablation_8b",), draw_ablation),
    "server": Plot(("gpu_server_8b",), draw_server),
    "exactness": Plot(("deviations",), draw_deviations),
}
