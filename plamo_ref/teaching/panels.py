"""The panels of a recorded step: each draws one fact of a run into its axes.

Invariant: a panel draws what the run says and computes nothing; a request has one letter and one
style everywhere.
Used by plamo_ref/teaching/scrubbing.py.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from plamo_ref.recorder.run import Run
from plamo_ref.teaching.figures import BLACK, GREY, SERIES, Style

COLUMNS = 26  # blocks beside each other
_PALE = "#EEF1F4"  # of what is nobody's
_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}

Letters = Mapping[str, str]  # request → its letter
Panel = Callable[[Axes, Run, int, Letters, str], None]


def letters(requests: Iterable[str]) -> Letters:
    """A, B, C … in the order of the requests; behind Z their numbers."""
    names = dict.fromkeys(requests)
    return {name: chr(65 + i) if i < 26 else str(i + 1) for i, name in enumerate(names)}


def knows(run: Run) -> bool:
    """Whether the run had a tree of texts."""
    return any(node.position for moment in run.moments for node in moment.tree)


def _style(request: str, known: Letters) -> Style:
    return SERIES[list(known).index(request) % len(SERIES)] if request in known else SERIES[0]


def _cell(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    style: Style | None,
    *,
    width: float = 1,
    alpha: float = 1,
) -> None:
    look: dict[str, Any] = {"facecolor": _PALE, "edgecolor": "white", "linewidth": 1}
    if style is not None:
        hatch = "" if text else style.hatch  # a letter says as much, and is calmer
        look |= {"facecolor": style.colour, "hatch": hatch}
    ax.add_patch(Rectangle((x, y - 0.44), width, 0.88, alpha=alpha, **look))
    if text and alpha == 1:
        plate = _PLATE if style is not None else None
        ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=11, bbox=plate)


def _bare(ax: Axes, title: str, width: float, rows: int) -> None:
    ax.set(xlim=(0, width), ylim=(-rows + 0.5, 0.56), xticks=[], yticks=[])
    ax.set_title(title, loc="left", fontsize=11)
    ax.spines[:].set_visible(False)


# --- the whole run, and this step in it ----------------------------------------------------------


def steps(ax: Axes, run: Run, here: int, known: Letters, _: str) -> None:
    """A row for each request, a column for each step; what is still to come is pale."""
    for column, moment in enumerate(run.moments):
        for share in moment.record.scheduled:
            row, style = list(known).index(share.request_id), _style(share.request_id, known)
            tall = 0.8 if share.kind != "decode" else 0.36
            look: dict[str, Any] = {"color": style.colour, "linewidth": 0}
            alpha = 1.0 if column <= here else 0.22
            ax.add_patch(
                Rectangle((column + 0.06, -row - tall / 2), 0.88, tall, alpha=alpha, **look)
            )
        for name in moment.record.preempted:
            if name in known:
                ax.text(column + 0.5, -list(known).index(name), "×", ha="center", va="center")
    frame: dict[str, Any] = {"fill": False, "edgecolor": BLACK, "linewidth": 1.6}
    ax.add_patch(Rectangle((here, -len(known) + 0.42), 1, len(known) + 0.16, **frame))
    count = len(run.moments)
    title = f"{run.header.scheduler.upper()} · step {here + 1} of {count}"
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set(xlim=(-0.2, count + 0.2), ylim=(-len(known) + 0.3, 0.7))
    ax.set_yticks([-row for row in range(len(known))], list(known.values()))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


# --- this step -----------------------------------------------------------------------------------


def budget(ax: Axes, run: Run, here: int, known: Letters, _: str) -> None:
    """The step's tokens, request by request, in a bar as long as the budget."""
    record, most = run.moments[here].record, run.header.budget
    ax.add_patch(Rectangle((0, -0.44), most, 0.88, facecolor=_PALE, linewidth=0))
    left = 0
    for share in record.scheduled:
        new = share.num_tokens
        text = f"{known[share.request_id]} {new}" if new > most / 14 else ""
        _cell(ax, left, 0, text, _style(share.request_id, known), width=new)
        left += new
    _bare(ax, f"budget: {record.num_tokens} of {most} tokens", most, 1)


def queue(ax: Axes, run: Run, here: int, known: Letters, _: str) -> None:
    """Who runs, in their seats, and who waits behind them."""
    moment, seats = run.moments[here], run.header.seats
    shown = min(seats, 12)
    for place in range(shown):
        name = moment.running[place] if place < len(moment.running) else None
        style = None if name is None else _style(name, known)
        _cell(ax, place, 0, "" if name is None else known.get(name, "?"), style)
    gap = shown + 0.9
    if moment.waiting:
        ax.text(gap - 0.45, 0, "‹", ha="center", va="center", color="#555555")
    for place, name in enumerate(moment.waiting[:16]):
        box = FancyBboxPatch(
            (gap + place + 0.12, -0.3), 0.76, 0.6, boxstyle="round,pad=0.08", facecolor="white"
        )
        ax.add_patch(box)
        ax.text(gap + place + 0.5, 0, known.get(name, "?"), ha="center", va="center")
    running, waiting = len(moment.running), len(moment.waiting)
    _bare(ax, f"running: {running} of {seats} seats · waiting: {waiting}", max(20, gap + 10), 1)


# --- memory --------------------------------------------------------------------------------------


def touched(run: Run, kind: str) -> int:
    """Blocks of a pool up to the last one that the run ever had, in whole rows."""
    had = {block for moment in run.moments for block in moment.owners(kind)}
    had |= {block for moment in run.moments for block in moment.kept(kind)}
    rows = -(-max(had, default=1) // COLUMNS)
    return min(rows * COLUMNS, run.header.blocks.get(kind, 0))


def blocks(ax: Axes, run: Run, here: int, known: Letters, kind: str) -> None:
    """The blocks of a pool and whose they are; what is kept for later is grey."""
    moment, most, drawn = run.moments[here], run.header.blocks.get(kind, 0), touched(run, kind)
    owners, kept = moment.owners(kind), moment.kept(kind)
    for block in range(1, drawn + 1):
        row, column = divmod(block - 1, COLUMNS)
        names = [name for name in owners.get(block, ()) if name in known]
        text = known[names[0]] if len(names) == 1 else ("+" if names else "")
        style = _style(names[0], known) if names else (_KEPT if block in kept else None)
        _cell(ax, column, -row, text, style)
    free = most - len(owners) - len(kept - set(owners))
    title = f"{kind.replace('_', ' ')} blocks: {len(owners)} in use, {free} free of {most}"
    title += ", grey: kept" if kept else ""
    _bare(ax, title, COLUMNS, -(-drawn // COLUMNS))


def slots(ax: Axes, run: Run, here: int, known: Letters, _: str) -> None:
    """Every state slot and whose it is."""
    moment, most = run.moments[here], run.header.slots
    owner = {slot: name for name, slot in moment.slots.items()}
    kept = {node.slot for node in moment.tree if node.is_kept}
    for slot in range(1, min(most, COLUMNS) + 1):
        name = owner.get(slot)
        style = _KEPT if slot in kept else None
        style = _style(name, known) if name is not None else style
        _cell(ax, slot - 1, 0, "" if name is None else known.get(name, "?"), style)
    _bare(ax, f"state slots: {len(owner)} in use of {most}", COLUMNS, 1)


# --- what is known of texts ----------------------------------------------------------------------


def texts(ax: Axes, run: Run, here: int, known: Letters, _: str) -> None:
    """The tree of texts: a filled dot is a moment that is kept, to go on from there."""
    tree = run.moments[here].tree
    rows: dict[int, float] = {}
    below = [
        [i for i, node in enumerate(tree) if node.parent == place] for place in range(len(tree))
    ]
    leaves = 0

    def place(node: int) -> float:
        nonlocal leaves
        if not below[node]:
            leaves += 1
            rows[node] = 1.0 - leaves
        else:
            rows[node] = sum(map(place, below[node])) / len(below[node])
        return rows[node]

    for root in (i for i, node in enumerate(tree) if node.parent < 0):
        place(root)
    for i, node in enumerate(tree):
        if node.parent >= 0:
            start, row = tree[node.parent].position, rows[node.parent]
            ax.plot(
                [start, start, node.position], [row, rows[i], rows[i]], "-", color=GREY, marker=""
            )
    for i, node in enumerate(tree):
        colour = BLACK if node.is_kept else "white"
        ax.plot(
            node.position, rows[i], "o", markerfacecolor=colour, markeredgecolor=BLACK, zorder=3
        )
    count = sum(node.is_kept for node in tree)
    longest = max((node.position for m in run.moments for node in m.tree), default=1)
    ax.set(xlim=(-0.02 * longest, 1.02 * longest), ylim=(min(-leaves, -1) + 0.4, 0.6), yticks=[])
    ax.set_title(f"known texts: {count} moments kept; tokens →", loc="left", fontsize=11)
    ax.spines[["left"]].set_visible(False)


_KEPT = Style(GREY, "..", "", "-")
PANELS: Mapping[str, Panel] = {
    "steps": steps, "budget": budget, "queue": queue, "blocks": blocks, "slots": slots,
    "texts": texts,
}  # fmt: skip
