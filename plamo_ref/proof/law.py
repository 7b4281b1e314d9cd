"""The equivalence law, run on a scenario: the tokens of a request depend on the request alone.

Invariant: what is expected comes from the reference and from arithmetic written down here, never
from the engine that is being watched. Three checks look on, each with its own error:

    audit      after every step: each block and slot has one owner, and every running request
               holds exactly the blocks that its last step could see, no more and no fewer
    schedule   after every step: budget, seats, first come first served, no idle step
    law        at the end: logits and ids of every request are those of the reference

All memory that nobody owns is filled with NaN, so that reading it shows. What interrupts a step is
no excuse: the same must hold behind it; only nobody has seen the logits of such a step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plamo_ref.engine.build import new_core
from plamo_ref.engine.copies import tensors_of
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.record import StepRecord, landed
from plamo_ref.engine.request import Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.errors import PlamoRefError
from plamo_ref.proof.audits import (
    ScheduleError,
    audit,
    check_all_free,
    check_nothing_kept,
    check_schedule,
)
from plamo_ref.proof.drafting import guess_what_was_said, numbers_of
from plamo_ref.proof.hurry import let_hurry
from plamo_ref.proof.interrupts import interrupted
from plamo_ref.proof.lab import Interruption, Pair, Scenario, ScenarioRequest
from plamo_ref.proof.ranks import caches_of, is_under_way
from plamo_ref.proof.sharing import found_by_nobody
from plamo_ref.reference import Plamo2Reference
from plamo_ref.sampling import TokenLogprobs, token_logprobs, uniform
from plamo_ref.sampling.adjust import RowContext, adjust
from plamo_ref.sampling.sampler import sample

TOLERANCE = 1e-10  # of logits, in float64


class LawError(PlamoRefError, AssertionError):
    """A request's tokens depend on something else than the request."""


@dataclass
class ScenarioResult:
    """What happened, so that one can see whether the scenarios are worth anything."""

    records: list[StepRecord] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    interrupted_at: list[str] = field(default_factory=list)  # where in the engine
    largest_error: float = 0.0  # of a logit

    @property
    def num_preemptions(self) -> int:
        """Those for want of memory; the scenario's own are not counted."""
        return sum(len(record.preempted) for record in self.records)


def run_scenario(scenario: Scenario, pair: Pair, by: ModelRunner | None = None) -> ScenarioResult:
    """Let the engine live through `scenario` and look at it from all sides.

    Args:
        by: a runner of the same model, with caches by the scenario's plan; None: one of its own.

    Raises:
        LawError, ScheduleError, IntegrityError, PoolError: it did something wrong.
    """
    runner = by or ModelRunner(pair.served, scenario.plan, pair.served.embedding.dtype)
    core = new_core(runner, scenario.plan, scenario.engine)
    guess_what_was_said(core, scenario)
    let_hurry(core, scenario.engine.seed)
    result, logits = ScenarioResult(), dict[str, dict[int, Tensor]]()

    def observe(record: StepRecord, sampled: Sequence[Request], rows: Tensor) -> None:
        result.records.append(record)
        for request, number, row in zip(sampled, numbers_of(sampled), rows, strict=True):
            seen = logits.setdefault(request.request_id, {})
            if request.error is None:  # else the token may have been the error, and not be there
                seen[number] = row.clone()

    core.observers.append(observe)
    poison(core)
    most = _most_steps(scenario, core.max_model_len) * core.config.pipeline_parallel_size
    for step in range(most):
        if _happen(step, scenario, core, result):
            audit(core)
        if core.has_work:
            _one_step(core, result, scenario.interruptions.get(step))
        elif all(request.arrival <= step for request in scenario.requests):
            break
    else:
        raise ScheduleError(f"{most} steps were not enough: somebody starves")
    check_all_free(core)
    core.reset_prefix_cache()
    check_nothing_kept(core)
    if stolen := found_by_nobody(result.records, result.requests):
        raise LawError("; ".join(stolen))
    for request, asked in zip(result.requests, _in_order(scenario), strict=True):
        seen = logits.get(request.request_id, {})
        missing = set(range(len(request.output_ids))) ^ seen.keys()
        if missing and not (result.interrupted_at and max(missing) < len(request.output_ids)):
            raise LawError(f"request {request.request_id}: logits of its tokens {sorted(missing)}")
        error = check_law(request, asked, seen, pair.reference, core)
        result.largest_error = max(result.largest_error, error)
    return result


def _in_order(scenario: Scenario) -> list[ScenarioRequest]:
    """The requests, in order of arrival."""
    return sorted(scenario.requests, key=lambda request: request.arrival)


def _most_steps(scenario: Scenario, max_model_len: int) -> int:
    """Each step, somebody computes a token; a token is computed again only after a preemption,
    which needs somebody older to have got one. (V0 may compute a prompt again for each of those.)
    """
    lengths = [
        len(r.prompt) + (r.params.max_tokens or 0) if r.follows is None else max_model_len
        for r in scenario.requests
    ]
    tokens = sum(lengths) + max(lengths) * sum(r.params.max_tokens or 0 for r in scenario.requests)
    last = max(request.arrival for request in scenario.requests)
    again = len(scenario.requests) + len(scenario.preemptions) + len(scenario.interruptions)
    return last + 2 + sum(lengths) * again + tokens


def _happen(step: int, scenario: Scenario, core: EngineCore, result: ScenarioResult) -> bool:
    """Arrivals, preemptions and aborts before a step; whether there were any."""
    for number, request in enumerate(scenario.requests):
        if request.arrival == step:
            guide = request.guide(core.runner.model.config.vocab_size)
            prompt = _prompt(request, result.requests, core.max_model_len)
            added = core.add(prompt, request.params, (), f"r{number}", guide, request.borders)
            result.requests.append(added)
    for _ in range(min(scenario.preemptions.get(step, 0), len(core.queues.running))):
        core.queues.preempt(core.queues.running[-1], Schedule())
    for number, request in enumerate(scenario.requests):
        if request.abort == step:
            core.finish(f"r{number}", "abort")
    asked = any(step in (request.arrival, request.abort) for request in scenario.requests)
    return asked or step in scenario.preemptions


def _prompt(request: ScenarioRequest, earlier: Sequence[Request], longest: int) -> tuple[int, ...]:
    """A next turn comes behind what was said until now, as far as there is room for it."""
    before = [other for other in earlier if other.request_id == f"r{request.follows}"]
    said = [token for other in before for token in (*other.prompt_ids, *other.output_ids)]
    return (*said[: max(0, longest - 1 - len(request.prompt))], *request.prompt)


def _one_step(core: EngineCore, result: ScenarioResult, interruption: Interruption | None) -> None:
    before = len(result.records)
    if interruption is None:
        core.step()
    elif _interrupted_step(core, result, interruption):
        audit(core)
        poison(core)
        return
    flight = core.in_flight
    if len(result.records) == before and flight is None and not is_under_way(core):
        if not core.has_work:
            return  # an interrupt had come before the last token's grammar could speak
        raise ScheduleError(f"step {core.num_steps}: there is work, but nobody computed anything")
    # With overlap the newest step has no record yet, and the newest record is a step behind.
    if flight is not None:
        assert flight.record is not None  # the law observes
        record = landed(flight.record, core.num_steps, (), core.queues)
        audit(core, record.scheduled)
        check_schedule(core, record)
    elif core.config.overlap or core.config.pipeline_parallel_size > 1:
        audit(core)
    else:
        audit(core, result.records[-1].scheduled)
        check_schedule(core, result.records[-1])
    poison(core)


def _interrupted_step(core: EngineCore, result: ScenarioResult, interruption: Interruption) -> bool:
    """Whether it was; if the step is over sooner, it is one like any other."""
    planned = interruption.error("planned by the scenario")
    with interrupted(interruption.point, planned) as interrupter:
        try:
            core.step()
        except BaseException as error:
            if error is not planned:
                raise
    if interrupter.where is not None:
        result.interrupted_at.append(interrupter.where)
    return interrupter.where is not None


def poison(core: EngineCore) -> None:
    """Fill every place that nobody owns, the null places too, with NaN: on all ranks."""
    for kind, cache in caches_of(core):
        pool = core.cache.slots if kind == "mamba" else core.cache.blocks[kind]
        assert pool is not None
        free = torch.tensor([0, *pool.free_places()])
        for tensor in filter(Tensor.is_floating_point, tensors_of(cache)):  # int8 has no NaN
            tensor[free] = math.nan


# --- law ------------------------------------------------------------------------------------------


def check_law(
    request: Request,
    asked: ScenarioRequest,
    logits: Mapping[int, Tensor],
    reference: Plamo2Reference,
    core: EngineCore,
) -> float:
    """Compare what a request got with one pass of the reference; returns the largest error.

    Args:
        logits: those that were seen, by number of the output token.

    Raises:
        LawError: names the request and the token.
    """
    outputs, prompt = request.output_ids, request.prompt_ids
    name, largest = f"request {request.request_id}", 0.0
    with torch.inference_mode():
        truth = reference.run(torch.tensor([*prompt, *outputs])).logits[:-1]  # of all but the last
    if outputs:
        expected = truth[len(prompt) - 1 :]
        for index, row in logits.items():
            error = float((row - expected[index]).abs().max())
            if not error <= TOLERANCE:  # NaN is not
                raise LawError(f"{name}, token {index}: a logit is off by {error:.3g}")
            largest = max(largest, error)
        _check_tokens(request, asked, expected, name)
        _check_prompt_logprobs(request, truth[: len(prompt) - 1], name)
    _check_end(request, asked, core.max_model_len, name)
    return largest


def _check_tokens(request: Request, asked: ScenarioRequest, truth: Tensor, name: str) -> None:
    params, outputs = request.params, request.output_ids
    contexts = []
    for index in range(len(outputs)):
        guide = asked.guide(truth.shape[-1])
        if guide is not None:
            guide.restart(outputs[:index])
        contexts.append(
            RowContext(params, request.prompt_ids, outputs[:index], request.stop_ids, guide)
        )
    uniforms = [uniform(request.seed, index) for index in range(len(outputs))]
    expected = sample(adjust(truth, contexts), [params] * len(outputs), uniforms).tolist()
    if outputs != expected:
        raise LawError(f"{name}: drew {outputs}, the reference draws {expected}")
    if params.logprobs is not None:
        _check_logprobs(
            request.logprobs, token_logprobs(truth, outputs, params.logprobs), f"{name}, output"
        )


def _check_prompt_logprobs(request: Request, truth: Tensor, name: str) -> None:
    count = request.params.prompt_logprobs
    expected = [] if count is None else token_logprobs(truth, request.prompt_ids[1:], count)
    _check_logprobs(request.prompt_logprobs, expected, f"{name}, prompt")


def _check_logprobs(
    got: Sequence[TokenLogprobs], expected: Sequence[TokenLogprobs], where: str
) -> None:
    ids = [[(each.token_id, each.rank) for each in side] for side in (got, expected)]
    values = [[each.logprob for each in side] for side in (got, expected)]
    tops = [[[token for token, _ in each.top] for each in side] for side in (got, expected)]
    if ids[0] != ids[1] or tops[0] != tops[1]:
        raise LawError(f"{where}: log probabilities of {ids[0]}, expected those of {ids[1]}")
    for index, (one, other) in enumerate(zip(*values, strict=True)):
        if not abs(one - other) <= TOLERANCE:
            raise LawError(f"{where}, token {index}: log probability {one}, expected {other}")


def _check_end(request: Request, asked: ScenarioRequest, max_model_len: int, name: str) -> None:
    if str(request.error) == "planned by the scenario":
        return  # it came where the engine worked for this request alone, so it is this request's
    outputs, stops = request.output_ids, set(request.params.stop_token_ids)
    stopped = [token in stops for token in outputs]
    most = request.params.max_tokens  # what an aborted one has not read does not count
    full = len(outputs) == most or request.num_known_tokens == max_model_len
    spoken = asked.grammar is not None and len(outputs) >= asked.grammar[1]
    expected = "stop" if any(stopped[-1:]) or spoken else ("length" if full else "abort")
    if any(stopped[:-1]) or request.finish_reason != expected:
        raise LawError(
            f"{name}: ended by {request.finish_reason!r} with {len(outputs)} tokens {outputs}, "
            f"stop tokens {sorted(stops)}; expected {expected!r} and no stop token before the end"
        )
