"""Scenarios with drafts: guesses that are right as often as not, wherever they can hurt.

The texts of a small random model hold nothing that could be looked up. So a scenario is lived
through without drafts first; in its second life the guesses are what was said in the first one,
with errors among them. Where a text has become another one, they are all wrong.

Invariant: a scenario of sharing.py with drafts and slots for them, and nothing else; drawn from the
numbers it is given.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.request import Request
from plamo_ref.engine.speculation.drafter import Drafter
from plamo_ref.proof.lab import Pick, Scenario
from plamo_ref.proof.sharing import draw_sharing_scenario, plain_request


@dataclass(frozen=True)
class DraftingScenario(Scenario):
    """`told`: what requests will probably say, by their ids."""

    told: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: Scenario, requests: Sequence[Request]) -> "DraftingScenario":
        """Drafts in a scenario through which requests have lived already."""
        parts = {each.name: getattr(scenario, each.name) for each in fields(Scenario)}
        return cls(**parts, told={r.request_id: tuple(r.output_ids) for r in requests})

    @property
    def without_drafts(self) -> Scenario:
        """The first life."""
        return replace(self, engine=replace(self.engine, speculative_config=None))


def draw_drafting_scenario(pick: Pick, config: Plamo2Config) -> DraftingScenario:
    """As `draw_sharing_scenario`, from whole numbers, with drafts for most requests."""
    scenario = draw_sharing_scenario(pick, config)
    count = pick(1, 6)
    requests = tuple(
        plain_request(request) if pick(0, 3) else request for request in scenario.requests
    )
    plan = scenario.plan
    if plan.pages is None:
        plan = replace(plan, num_slots=plan.num_slots and plan.num_slots + pick(0, 4))
    engine = replace(scenario.engine, speculative_config={"num_speculative_tokens": count})
    scenario = replace(scenario, requests=requests, plan=plan, engine=engine)
    return DraftingScenario.of(scenario, ())


class Told:
    """Guesses for one request, as a `Lookup` makes them."""

    def __init__(self, request: Request, told: Sequence[int], seed: int) -> None:
        self._request, self._told, self._seed = request, told, seed

    def _rng(self) -> random.Random:
        known = len(self._request.output_ids)
        return random.Random(f"{self._seed} {self._request.request_id} {known}")

    def read(self) -> None:
        """There is nothing to be learned."""

    @property
    def most(self) -> int:
        return self._rng().choice((0, 1, 2, 3, 9))

    def gain(self, count: int) -> float:
        return float(count)

    def guess(self, count: int) -> list[int]:
        known, rng = len(self._request.output_ids), self._rng()
        told = [*self._told[known : known + count], *[1] * count][:count]
        return [token if rng.randrange(4) else token ^ 1 for token in told]


def guess_what_was_said(core: EngineCore, scenario: Scenario) -> None:
    """Let the drafts of a core be those of its scenario."""
    drafter = core.queues.drafter
    if isinstance(drafter, Drafter) and isinstance(scenario, DraftingScenario):
        told, seed = scenario.told, scenario.engine.seed
        drafter.new_lookup = lambda request: Told(request, told.get(request.request_id, ()), seed)


def numbers_of(moved: Sequence[Request]) -> list[int]:
    """Which output each is about, of requests that are there once for each token that they got."""
    left, numbers = Counter(moved), list[int]()
    for request in moved:
        numbers.append(len(request.output_ids) - left[request])
        left[request] -= 1
    return numbers
