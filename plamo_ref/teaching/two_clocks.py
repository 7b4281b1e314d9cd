"""What lesson 13 looks at: host and GPU as two rows of time, and an engine that is being watched.

Invariant: a bar is as long as the time that it stands for, and all ways share one axis.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import Request
from plamo_ref.proof.audits import audit
from plamo_ref.proof.lab import ScenarioRequest
from plamo_ref.proof.law import check_law
from plamo_ref.reference import Plamo2Reference
from plamo_ref.teaching.figures import figure, style_of

Spans = Sequence[tuple[float, float]]  # begin and end


def timeline(ways: Mapping[str, tuple[Spans, Spans]], unit: str = "µs") -> Figure:
    """Two rows for each way: the host's launches, and what the GPU runs."""
    fig, ax = figure(8, 0.9 + 0.75 * len(ways))
    names: list[str] = []
    for name, both in ways.items():
        for who, spans, kind in zip(("host", "GPU"), both, (1, 0), strict=True):
            look, parts = style_of(kind), [(begin, end - begin) for begin, end in spans]
            place = (-len(names) - 0.4, 0.8)
            ax.broken_barh(parts, place, facecolor=look.colour, hatch=look.hatch, edgecolor="black")
            names.append(f"{name}: {who}")
    ax.set_yticks([-i for i in range(len(names))], names)
    ax.set(xlabel=f"time, {unit}", xlim=(0, None))
    return fig


def watched(core: EngineCore, reference: Plamo2Reference) -> list[list[int]]:
    """The ids of all requests, run to their ends: the audit looks on after every step, and at the
    end the law compares each logit with the reference.

    Raises:
        AssertionError: the audit, or the law (LawError), and what it found.
    """
    requests, rows = list(core.requests.values()), dict[Request, list[Tensor]]()

    def keep(record: StepRecord, sampled: Sequence[Request], logits: Tensor) -> None:
        for request, row in zip(sampled, logits, strict=True):
            rows.setdefault(request, []).append(row.clone())

    core.observers.append(keep)
    while core.has_work:
        core.step()
        audit(core)
    for request in requests:
        asked = ScenarioRequest(tuple(request.prompt_ids), request.params)
        check_law(request, asked, dict(enumerate(rows[request])), reference, core)
    return [request.output_ids for request in requests]
