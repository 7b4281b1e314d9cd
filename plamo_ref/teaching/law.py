"""The equivalence law, run on a trace: the tokens of a request depend on the request alone.

Invariant: what is expected comes from the reference and from arithmetic written down here, never
from the engine that is being watched. Three checks look on, each with its own error:

    audit      after every step: each block and slot has one owner, and every running request
               holds exactly the blocks that its last step could see, no more and no fewer
    schedule   after every step: budget, seats, first come first served, no idle step
    law        at the end: logits and ids of every request are those of the reference

All memory that nobody owns is filled with NaN, so that reading it shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plamo_ref.batch import MambaCache
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.flight import record_of
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduler import Schedule
from plamo_ref.errors import PlamoRefError
from plamo_ref.reference import Plamo2Reference
from plamo_ref.sampling import RowContext, TokenLogprobs, adjust, sample, token_logprobs, uniform
from plamo_ref.teaching.audits import ScheduleError, audit, check_all_free, check_schedule
from plamo_ref.teaching.lab import Pair, Trace

TOLERANCE = 1e-10  # of logits, in float64


class LawError(PlamoRefError, AssertionError):
    """A request's tokens depend on something else than the request."""


@dataclass
class TraceResult:
    """What happened, so that one can see whether the traces are worth anything."""

    records: list[StepRecord] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    largest_error: float = 0.0  # of a logit

    @property
    def num_preemptions(self) -> int:
        """Those for want of memory; the trace's own are not counted."""
        return sum(len(record.preempted) for record in self.records)


def run_trace(trace: Trace, pair: Pair) -> TraceResult:
    """Let the engine live through `trace` and look at it from all sides.

    Raises:
        LawError, ScheduleError, IntegrityError, PoolError: it did something wrong.
    """
    runner = ModelRunner(pair.served, trace.plan, pair.served.embedding.dtype)
    core = EngineCore(runner, trace.plan, trace.engine)
    result, logits = TraceResult(), dict[str, list[Tensor]]()

    def observe(record: StepRecord, sampled: Sequence[Request], rows: Tensor) -> None:
        result.records.append(record)
        for request, row in zip(sampled, rows, strict=True):
            logits.setdefault(request.request_id, []).append(row.clone())

    core.observers.append(observe)
    poison(core)
    for step in range(_most_steps(trace)):
        _happen(step, trace, core, result)
        audit(core)
        if core.has_work:
            _one_step(core, result)
        elif all(request.arrival <= step for request in trace.requests):
            break
    else:
        raise ScheduleError(f"{_most_steps(trace)} steps were not enough: somebody starves")
    check_all_free(core)
    for request in result.requests:
        error = check_law(request, logits.get(request.request_id, []), pair.reference, core)
        result.largest_error = max(result.largest_error, error)
    return result


def _most_steps(trace: Trace) -> int:
    """Each step, somebody computes a token; a token is computed again only after a preemption,
    which needs somebody older to have got one."""
    tokens = sum(len(r.prompt) + (r.params.max_tokens or 0) for r in trace.requests)
    last = max(request.arrival for request in trace.requests)
    return last + 2 + tokens * (1 + len(trace.requests) + len(trace.preemptions))


def _happen(step: int, trace: Trace, core: EngineCore, result: TraceResult) -> None:
    """Arrivals, preemptions and aborts before a step."""
    for number, request in enumerate(trace.requests):
        if request.arrival == step:
            added = core.add(request.prompt, request.params, request_id=f"r{number}")
            result.requests.append(added)
    for _ in range(min(trace.preemptions.get(step, 0), len(core.queues.running))):
        core.queues.preempt(core.queues.running[-1], Schedule())
    for number, request in enumerate(trace.requests):
        if request.abort == step:
            core.finish(f"r{number}", "abort")


def _one_step(core: EngineCore, result: TraceResult) -> None:
    before = len(result.records)
    core.step()
    flight = core.in_flight
    if len(result.records) == before and flight is None:
        raise ScheduleError(f"step {core.num_steps}: there is work, but nobody computed anything")
    # With overlap the newest step has no record yet, and the newest record is a step behind.
    if flight is not None:
        record = record_of(flight, core.num_steps, (), core.queues)
        audit(core, record.scheduled)
        check_schedule(core, record)
    elif core.config.overlap:
        audit(core)
    else:
        audit(core, result.records[-1].scheduled)
        check_schedule(core, result.records[-1])
    poison(core)


def poison(core: EngineCore) -> None:
    """Fill every place that nobody owns, the null places too, with NaN."""
    kinds = core.runner.model.config.layer_kinds
    for kind, cache in zip(kinds, core.runner.caches, strict=True):
        if isinstance(cache, MambaCache):
            tensors, pool = (cache.conv, cache.ssm), core.cache.slots
        else:
            tensors, pool = (cache.keys, cache.values), core.cache.blocks[kind]
        assert pool is not None
        free = [0, *pool.free_places()]
        for tensor in tensors:
            tensor[free] = math.nan


# --- law ------------------------------------------------------------------------------------------


def check_law(
    request: Request, logits: Sequence[Tensor], reference: Plamo2Reference, core: EngineCore
) -> float:
    """Compare what a request got with one pass of the reference; returns the largest error.

    Raises:
        LawError: names the request and the token.
    """
    outputs, prompt = request.output_ids, request.prompt_ids
    name = f"request {request.request_id}"
    if len(logits) != len(outputs):
        raise LawError(f"{name}: {len(outputs)} tokens from {len(logits)} rows of logits")
    error = 0.0
    with torch.inference_mode():
        truth = reference.run(torch.tensor([*prompt, *outputs])).logits[
            :-1
        ]  # [prompt + output - 1]
    if outputs:
        expected = truth[len(prompt) - 1 :]
        errors = (torch.stack(list(logits)) - expected).abs().amax(-1)
        for index, error in enumerate(errors.tolist()):
            if not error <= TOLERANCE:  # NaN is not
                raise LawError(f"{name}, token {index}: a logit is off by {error:.3g}")
        error = float(errors.max())
        _check_tokens(request, expected, name)
        _check_prompt_logprobs(request, truth[: len(prompt) - 1], name)
    _check_end(request, core.max_model_len, name)
    return error


def _check_tokens(request: Request, truth: Tensor, name: str) -> None:
    params, outputs = request.params, request.output_ids
    contexts = [
        RowContext(params, request.prompt_ids, outputs[:index], request.stop_ids)
        for index in range(len(outputs))
    ]
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


def _check_end(request: Request, max_model_len: int, name: str) -> None:
    outputs, stops = request.output_ids, set(request.params.stop_token_ids)
    stopped = [token in stops for token in outputs]
    full = len(outputs) == request.params.max_tokens or request.num_tokens == max_model_len
    expected = "stop" if any(stopped[-1:]) else ("length" if full else "abort")
    if any(stopped[:-1]) or request.finish_reason != expected:
        raise LawError(
            f"{name}: ended by {request.finish_reason!r} with {len(outputs)} tokens {outputs}, "
            f"stop tokens {sorted(stops)}; expected {expected!r} and no stop token before the end"
        )
