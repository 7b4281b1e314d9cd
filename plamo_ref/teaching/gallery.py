"""The gallery of bugs: patients with a hidden fault, and the instruments to examine them with.

Invariant: a patient is the real engine with one fault of the registry planted (the faults of
tests/proof/test_faults.py); nothing that an instrument says is written down beforehand.
Used by notebooks/18_broken_on_purpose.ipynb.
"""

import random
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import MambaCache
from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.errors import PlamoRefError
from plamo_ref.proof.audits import ScheduleError
from plamo_ref.proof.faults import FAULTS, fault
from plamo_ref.proof.lab import Pair, Scenario, ScenarioRequest, lab_plan
from plamo_ref.proof.law import run_scenario
from plamo_ref.proof.planting import Check
from plamo_ref.sampling import SamplingParams
from plamo_ref.teaching.checks import CheckFailed
from plamo_ref.teaching.divergence import Divergence, first_divergence
from plamo_ref.teaching.recording import Quantity, Run

_BLOCK_SIZE, _BLOCKS, _SEATS = 4, 40, 4
_LONGEST_COMPLAINT = 200
_HIDDEN = {  # the answers; a learner who reads them here has only cheated himself
    "A1": "window freed one token early",
    "A2": "preempted request keeps its memory",
    "A3": "whole prompt cached",
    "B1": "seed depends on the place",
    "B2": "randomness moves at a preemption",
    "B3": "logits of the neighbour",
    "C1": "one RoPE base for all",
    "C2": "slot mapping off by one",
    "C3": "window sees one key too few",
}
WARDS: dict[str, tuple[Check, ...]] = {"A": ("audit", "schedule"), "B": ("law",), "C": ("law",)}


@dataclass(frozen=True)
class Patient:
    """An engine with a bug whose name is not told."""

    label: str
    _name: str = field(repr=False)

    def planted(self) -> AbstractContextManager[None]:
        """While the block runs, the engine is ill."""
        return fault(self._name).planted()


def patient(label: str) -> Patient:
    """Patient "A1" to "C3".

    Raises:
        KeyError: there is no such patient.
    """
    return Patient(label, _HIDDEN[label])


def suspects(ward: str) -> dict[str, str]:
    """Name → story of all faults that the ward's checks catch; its three patients are among
    them."""
    return {each.name: each.story for each in FAULTS if each.caught_by in WARDS[ward]}


# --- experiments ----------------------------------------------------------------------------------


def prompt(length: int, seed: int, vocabulary: int = 64) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(vocabulary) for _ in range(length))


def _scenario(pair: Pair, *requests: ScenarioRequest, **changes: Any) -> Scenario:
    """A scenario in an engine with room enough; `preempt` sends the newest back before a step."""
    preempt = changes.pop("preempt", {})
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": _SEATS} | changes
    engine = EngineConfig(
        block_size=_BLOCK_SIZE, dtype="float64", device="cpu", overlap=False, **settings
    )
    kinds = {"full": _BLOCKS, "sliding_window": _BLOCKS}
    plan = lab_plan(
        pair.config,
        block_size=_BLOCK_SIZE,
        blocks=kinds,  # type: ignore[arg-type]
        slots=engine.seats,
        max_num_seqs=engine.seats,
    )
    return Scenario(requests, engine, plan, preempt)


def experiments(pair: Pair) -> dict[str, Scenario]:
    """Small scenarios, each with one circumstance more than "alone"."""
    greedy = SamplingParams(temperature=0, max_tokens=8)
    dice = SamplingParams(temperature=1.0, max_tokens=8, seed=1)
    a, b, c = (ScenarioRequest(prompt(n, n), greedy) for n in (5, 9, 7))
    return {
        "alone": _scenario(pair, a),
        "in pieces": _scenario(
            pair, ScenarioRequest(prompt(14, 1), greedy), max_num_batched_tokens=5
        ),
        "together": _scenario(pair, a, b, c),
        "one seat": _scenario(pair, a, b, max_num_seqs=1),
        "sent back": _scenario(pair, a, preempt={4: 1}),
        "dice": _scenario(pair, *(ScenarioRequest(each.prompt, dice) for each in (a, b))),
        "dice, sent back": _scenario(pair, ScenarioRequest(a.prompt, dice), preempt={4: 1}),
    }


@dataclass(frozen=True)
class Complaint:
    """What the first check to notice something said."""

    check: str  # the class of the error: IntegrityError, PoolError, ScheduleError, LawError
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


def complaint(scenario: Scenario, pair: Pair, ill: Any = None) -> Complaint | None:
    """Run it under all checks, in the patient or fault `ill` (None: the engine as it is)."""
    with ill.planted() if ill else nullcontext():
        try:
            run_scenario(scenario, pair)
        except (PlamoRefError, ValueError) as error:
            said = str(error).partition(": StepRecord(")[0]
            return Complaint(type(error).__name__, textwrap.shorten(said, _LONGEST_COMPLAINT))
    return None


def symptoms(pair: Pair, ill: Any = None) -> dict[str, Complaint | None]:
    """One complaint, or None, an experiment."""
    return {name: complaint(scenario, pair, ill) for name, scenario in experiments(pair).items()}


# --- the microscope on an engine ------------------------------------------------------------------


def memory_after(
    prompt_ids: Sequence[int], pair: Pair, ill: Any = None, *, budget: int = 64
) -> Run:
    """Serve a prompt up to its first token, in steps of `budget`; all that the caches then hold.

    States and values by layer, and the last row of logits. (Keys are stored turned by RoPE; the
    reference keeps them unturned, so they are left out.)

    Raises:
        ScheduleError: the engine waits for ever.
    """
    params = SamplingParams(temperature=0, max_tokens=2)
    asked = ScenarioRequest(tuple(prompt_ids), params)
    scenario = _scenario(pair, asked, max_num_batched_tokens=budget)
    rows: list[Tensor] = []
    with ill.planted() if ill else nullcontext():
        runner = ModelRunner(pair.served, scenario.plan, pair.served.embedding.dtype)
        core = new_core(runner, scenario.plan, scenario.engine)
        core.observers.append(lambda record, sampled, logits: rows.append(logits.clone()))
        request = core.add(asked.prompt, params, request_id="patient")
        for _ in prompt_ids:  # at least one of them is computed in each step
            if not request.output_ids:
                core.step()
    if not request.output_ids:
        raise ScheduleError(f"{len(prompt_ids)} steps gave no token: there is nothing to look at")
    values = _held(core, request.request_id)
    return Run.sorted(len(asked.prompt), values | {_LOGITS: rows[-1]})


_LOGITS = Quantity(None, "logits", "newest")


def _held(core: EngineCore, request_id: str) -> dict[Quantity, Tensor]:
    holding, found = core.cache.holdings[request_id], dict[Quantity, Tensor]()
    kinds = core.runner.model.config.layer_kinds
    for layer, (kind, cache) in enumerate(zip(kinds, core.runner.caches, strict=True)):
        if isinstance(cache, MambaCache):
            found[Quantity(layer, "conv_state", "state")] = cache.conv[holding.slot].clone()
            found[Quantity(layer, "ssm_state", "state")] = cache.ssm[holding.slot].clone()
        else:
            table = holding.tables[kind]
            rows = cache.values[table.blocks].flatten(0, 1)  # [blocks · size, KV heads, P]
            end = core.requests[request_id].num_computed_tokens - table.first * _BLOCK_SIZE
            found[Quantity(layer, "value_cache", "newest")] = rows[:end].clone()
    return found


def microscope(
    prompt_ids: Sequence[int], pair: Pair, ill: Any = None, *, budget: int = 64
) -> Divergence | None:
    """Where the engine's memory after a prompt first parts from the reference's."""
    with torch.no_grad():
        truth = Run.of(pair.reference.run(torch.tensor(list(prompt_ids))))
    logits = truth.values[Quantity(None, "logits")][-1:]
    truth = Run.sorted(truth.tokens, {**truth.values, _LOGITS: logits})
    return first_divergence(memory_after(prompt_ids, pair, ill, budget=budget), truth)


# --- the self-check -------------------------------------------------------------------------------


def diagnosed(ward: str, answer: Mapping[str, Any], pair: Pair) -> int:
    """How many patients of a ward are named; right answers are not given away.

    Raises:
        NotImplementedError: some are still `...`.
        CheckFailed: a name is none of the suspects, or its symptoms are not the patient's.
    """
    labels = [label for label in _HIDDEN if label.startswith(ward)]
    if not isinstance(answer, Mapping):
        raise CheckFailed(f"✗ ward {ward}: name them in a dict, {{{labels[0]!r}: name, …}}")
    if any(answer.get(label, ...) is ... for label in labels):
        raise NotImplementedError
    for label in labels:
        name = answer[label]
        if not isinstance(name, str) or name not in suspects(ward):
            raise CheckFailed(
                f"✗ {label}: {name!r} is none of the suspects of ward {ward}; a name is a key of "
                f"gallery.suspects({ward!r})"
            )
        if name != _HIDDEN[label]:
            raise CheckFailed(_contradiction(label, name, pair))
    return len(labels)


def _contradiction(label: str, name: str, pair: Pair) -> str:
    """The first experiment in which the patient and the named bug behave differently."""
    for experiment, scenario in experiments(pair).items():
        mine, theirs = (complaint(scenario, pair, ill) for ill in (patient(label), fault(name)))
        if str(mine) != str(theirs):
            return (
                f"✗ {label} is not {name!r}: experiment {experiment!r}\n"
                f"  of the patient: {mine or 'no complaint'}\n"
                f"  of that bug:    {theirs or 'no complaint'}"
            )
    return f"✗ {label} is not {name!r}, although the experiments agree: read both stories again"
