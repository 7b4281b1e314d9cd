"""A plan of one arena, laid over the bytes of a plan of two rooms.

Invariant: whatever the two rooms promise holds here: as many seats, requests as long; more memory
never gives less. If there can be no arena the two rooms stay, and the plan says why.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.pages import Pages, page_shape
from plamo_ref.engine.memory.plan_text import narrow_reasons, paged_reasons

if TYPE_CHECKING:
    import torch

    from plamo_ref.engine.memory.planner import MemoryPlan, Needs


def as_pages(
    plan: "MemoryPlan",
    config: Plamo2Config,
    engine: EngineConfig,
    needs: "Needs",
    dtypes: "tuple[torch.dtype, ...]",
) -> "MemoryPlan":
    """One arena of the same bytes; the plan as it is, if there cannot be one, and why.

    Each kind always keeps what one request needs that is alone, and with full attention and no
    `max_model_len` as many tokens as the two rooms would have. A seat needs a slot and a block of
    each group, to begin with: what it will need is not put aside, but taken when it is needed.
    """
    sizes = (*(dtype.itemsize for dtype in dtypes), plan.replay)
    shape = page_shape(config, needs.size, *sizes)
    if engine.num_ranks > 1:
        shape = "several processes share the model, and their parts may be of different shapes"
    if isinstance(shape, str):
        return replace(plan, reasons=(*plan.reasons, f"two rooms, not one arena: {shape}"))
    alone: dict[LayerKind, int] = dict.fromkeys(plan.num_blocks, needs.span)
    if "full" in alone:
        alone["full"] = needs.full_span if engine.max_model_len else plan.num_blocks["full"] - 1
    if plan.num_slots:
        alone["mamba"] = 1
    num_pages, uses = plan.budget // shape.page_bytes, shape.uses
    least = {kind: -(-count // uses[kind].count) for kind, count in alone.items()}
    if (spare := num_pages - 1 - sum(least.values())) < 0:
        why = f"a request alone needs {sum(least.values())} pages of {shape.page_bytes:,} bytes"
        return replace(plan, reasons=(*plan.reasons, f"two rooms, not one arena: {why}"))
    pages = Pages(shape, num_pages, least, alone)
    seats = plan.max_num_seqs
    while seats < engine.seats:  # of those that the two rooms have no window for
        firsts = (max(least[kind], -(-(seats + 1) // uses[kind].count)) for kind in least)
        if sum(firsts) >= num_pages:
            break
        seats += 1
    return replace(
        plan,
        num_blocks={kind: 1 + pages.most(kind) for kind in plan.num_blocks},
        num_slots=plan.num_slots and 1 + pages.most("mamba"),
        max_num_seqs=seats,
        pages=pages,
        reasons=narrow_reasons(config, engine, needs)
        + paged_reasons(engine, pages, seats, spare, plan.budget),
    )
