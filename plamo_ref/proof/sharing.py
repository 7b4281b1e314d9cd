"""Scenarios in which prompts begin alike: what a prefix cache lives on, and can stumble over.

Some prompts leave an earlier one somewhere, some are the same, some are the next turn of an earlier
request: its prompt, what it has said until then, and a few tokens more. Some come at the same time,
some bring a salt, some say where they could be left.

Invariant: a scenario of lab.py with changed prompts, arrivals and memory, and nothing else; drawn
from the numbers it is given.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.memory.pages import Pages, page_shape
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import Request
from plamo_ref.proof.lab import Pick, Scenario, ScenarioRequest, draw_scenario
from plamo_ref.sampling import SamplingParams

MOST_NEW = 4  # tokens that a next turn adds


def draw_sharing_scenario(pick: Pick, config: Plamo2Config) -> Scenario:
    """As `draw_scenario`, from whole numbers; in most of them what was computed is kept."""
    scenario = draw_scenario(pick, config)
    plain = pick(0, 1) == 0
    requests = [plain_request(request) if plain else request for request in scenario.requests]
    for number in range(1, len(requests)):
        base = pick(0, number - 1)
        requests[number] = _share(pick, requests[number], requests[base], base)
    plan, pages = scenario.plan, _pages(pick, scenario.plan, config)
    longer = math.ceil(pick(0, 40) / plan.block_size)
    plan = replace(
        plan,
        num_blocks={kind: count + longer for kind, count in plan.num_blocks.items()},
        num_slots=plan.num_slots and plan.num_slots + pick(0, 5),
    )
    if pages is not None and pick(0, 1):
        plan = in_one_arena(plan, pages)
    engine = replace(scenario.engine, enable_prefix_caching=pick(0, 5) > 0)
    # An interrupt makes the engine forget all that it kept, so not too many of them.
    interruptions = scenario.interruptions if pick(0, 2) == 0 else {}
    engine = replace(engine, photographs=pick(0, 2) > 0, photograph_interval=pick(0, 12))
    return replace(
        scenario,
        requests=tuple(requests),
        plan=plan,
        engine=engine,
        interruptions=interruptions,
    )


def _pages(pick: Pick, plan: MemoryPlan, config: Plamo2Config) -> Pages | None:
    """So few pages that requests have to go for others; None: there can be no arena."""
    shape = page_shape(config, plan.block_size, 8, 8, replay=plan.replay)
    if isinstance(shape, str):
        return None
    alone: dict[LayerKind, int] = {kind: n - 1 for kind, n in plan.num_blocks.items()}
    if plan.num_slots:
        alone["mamba"] = 1
    least = {kind: math.ceil(count / shape.uses[kind].count) for kind, count in alone.items()}
    return Pages(shape, 1 + sum(least.values()) + pick(0, (0, 4)[pick(0, 1)]), least, alone)


def in_one_arena(plan: MemoryPlan, pages: Pages) -> MemoryPlan:
    """A plan with pages for its two rooms."""
    return replace(
        plan,
        pages=pages,
        num_blocks={kind: 1 + pages.most(kind) for kind in plan.num_blocks},
        num_slots=plan.num_slots and 1 + pages.most("mamba"),
    )


def plain_request(request: ScenarioRequest) -> ScenarioRequest:
    """Nothing that the host must look at before the next step: so that steps overlap."""
    names = ("max_tokens", "stop_token_ids", "temperature", "top_k", "seed")
    params = SamplingParams(**{name: getattr(request.params, name) for name in names})
    return replace(request, params=params, grammar=None)


def _share(pick: Pick, own: ScenarioRequest, base: ScenarioRequest, number: int) -> ScenarioRequest:
    """Let a request have something in common with an earlier one."""
    how, salted = pick(0, 7), pick(0, 7) == 0
    borders = tuple(pick(0, 30) for _ in range(pick(0, 2)))
    arrival, prompt, follows = own.arrival, own.prompt, None
    if how == 1:
        common = pick(0, len(prompt))
        prompt = base.prompt[:common] + prompt[common:] if len(base.prompt) > common else prompt
    elif how in (2, 3, 4):
        prompt = base.prompt
    elif how >= 5:
        prompt, follows = prompt[:MOST_NEW], number
    if follows is not None:
        arrival = base.arrival + pick(1, 30)  # often after its end
    elif pick(0, 1):
        arrival = base.arrival
    return replace(
        own,
        prompt=prompt,
        follows=follows,
        borders=borders,
        arrival=arrival,
        abort=None if own.abort is None else arrival + own.abort - own.arrival,
        params=replace(own.params, cache_salt="salt") if salted else own.params,
    )


def found_by_nobody(records: Iterable[StepRecord], requests: Iterable[Request]) -> list[str]:
    """Where somebody found computed what nobody before him, with the same salt, had asked for."""
    known, began, wrong = {r.request_id: r for r in requests}, set[str](), []
    texts = {name: (*r.prompt_ids, *r.output_ids) for name, r in known.items()}
    for name, count, _ in (found for record in records for found in record.found):
        salt = known[name].params.cache_salt
        before = [other for other in began if known[other].params.cache_salt == salt]
        if count and not any(texts[other][:count] == texts[name][:count] for other in before):
            wrong.append(f"request {name} found {count} tokens that nobody with its salt has had")
        began.add(name)
    return wrong
