"""The loop: schedule, build the batch, run, sample, update. It knows token ids, no text.

A step is launched and, later, landed: its tokens are read. Without overlap it lands at once. With
overlap the next step is launched first, so the device never waits for the host: a request that
goes on for certain is scheduled with a token whose value only the device knows.

Invariant: between two steps every unfinished request is either waiting without memory or running
with what `num_computed_tokens` needs; the tokens of a request depend on the request alone.
Built in notebooks/07_continuous_batching.ipynb, the overlap in 13_cuda_graphs_and_overlap.ipynb.
"""

import time
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from plamo_ref.engine.batching import Unread, build_batch
from plamo_ref.engine.choosing import (
    choose_on_device,
    finish_reason,
    is_full,
    read_tokens,
    score_prompts,
)
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.flight import Flight, describe, record_of
from plamo_ref.engine.limits import check_request, longest_request
from plamo_ref.engine.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduler import Queues, Scheduler
from plamo_ref.engine.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduler_v1 import V1Scheduler
from plamo_ref.sampling import Guide, SamplingParams

GRAMMAR_SECONDS = 0.01  # for the grammars of a step: a mask takes a hundredth of that
STALLED_SECONDS = 0.01  # where nothing else can be done
# Called after a step with its record, the requests that got a token, and their logits [n, V].
Observer = Callable[[StepRecord, Sequence[Request], Tensor], None]


class EngineCore:
    """All requests of one model on one device."""

    def __init__(self, runner: ModelRunner, plan: MemoryPlan, config: EngineConfig) -> None:
        self.runner, self.config = runner, config
        self.cache = plan.new_cache()
        self.queues = Queues(config, self.cache, plan.max_num_seqs)
        schedulers: dict[str, type[V0Scheduler] | type[V1Scheduler]] = {
            "v0": V0Scheduler,
            "v1": V1Scheduler,
        }
        self.scheduler: Scheduler = schedulers[config.scheduler](self.queues)
        self.requests: dict[str, Request] = {}
        self.observers: list[Observer] = []
        self.num_steps = self._arrivals = 0
        model = runner.model.config
        self.max_model_len = longest_request(config, self.cache, model.max_position_embeddings)
        self._overlap = config.resolve_overlap(runner.device)
        self._flight: Flight | None = None  # launched, not landed
        self._undecided: list[Request] = []  # have a token on which their grammar has to speak

    # --- requests come and go ------------------------------------------------------------------

    def add(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        stop_ids: Collection[int] = (),
        request_id: str | None = None,
        guide: Guide | None = None,
    ) -> Request:
        """Queue a request. `guide` is the grammar of `params.guided`, at its beginning.

        Raises:
            EngineError: it could never run: empty, too long, or not made of known tokens.
        """
        request_id = str(self._arrivals) if request_id is None else request_id
        if request_id in self.requests:
            raise EngineError(f"request {request_id} is already running")
        check_request(
            request_id,
            prompt_ids,
            params,
            config=self.config,
            vocab_size=self.runner.model.config.vocab_size,
            max_model_len=self.max_model_len,
        )
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)}
        # Requests without a seed still must not share their random numbers.
        seed = params.seed if params.seed is not None else (self.config.seed << 32) + self._arrivals
        arrival = self._arrivals
        request = Request(
            request_id, tuple(prompt_ids), params, frozenset(stops), seed, arrival, guide
        )
        self._arrivals += 1
        self.requests[request_id] = request
        self.queues.add(request)
        return request

    def finish(self, request_id: str, reason: FinishReason = "abort") -> None:
        """End a request now, whatever it is doing. Unknown or finished ones are ignored."""
        request = self.requests.pop(request_id, None)
        if request is not None:
            self.queues.remove(request)
            request.finish(reason)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def in_flight(self) -> Flight | None:
        """The step that was launched and has not landed; always None without overlap."""
        return self._flight

    # --- one step ------------------------------------------------------------------------------

    def step(self) -> list[Request]:
        """Launch one batch and land one. Returns the requests that got a token, finished or not.

        With overlap the batch that lands is the one launched a step ago: the first call returns
        nobody. A request whose grammar takes its time over a token is returned when it is known
        whether that token is its last; until then it rests, and the others go on.
        """
        decided = self._decide(self._take_undecided(), STALLED_SECONDS if self.is_stalled else 0)
        if decided:  # a call returns nobody twice: the newest token is the one that is new
            return decided
        landed: list[Request] = []
        flying = self._flight
        if flying is not None and flying.needs_host:
            self._flight = None
            landed += self._land(flying)
        flying, self._flight = self._flight, self._launch(self._flight)
        if flying is not None:
            landed += self._land(flying)
        if self._flight is not None and not self._overlap:
            flying, self._flight = self._flight, None
            landed += self._land(flying)
        return landed

    def _launch(self, previous: Flight | None) -> Flight | None:
        """Decide and start the next step. Nothing here waits for the device."""
        started = time.perf_counter()
        schedule = self.scheduler.schedule()
        scheduled = time.perf_counter()
        if not schedule:
            return None
        unread = None if previous is None else Unread(previous.tokens, previous.rows)
        plan = build_batch(schedule, self.cache, self.runner.place, unread)
        logits = self.runner.run(plan.batch, plan.rows)
        numbers = [r.num_output_tokens for r in plan.sampled]
        ops = self.runner.model.ops
        tokens = choose_on_device(plan.sampled, logits[: len(plan.sampled)], ops, numbers)
        if self.observers and self._overlap:
            logits = logits.clone()  # a recorded step writes where the last one wrote
        log = describe(plan, schedule, self.cache) if self.observers else None
        flight = Flight.of(plan, schedule, logits, tokens, log, started, scheduled)
        for request in plan.requests:
            request.num_computed_tokens += schedule.tokens[request]
        for request in plan.sampled:
            request.num_unread_tokens += 1
            if is_full(request, request.num_output_tokens, self.max_model_len):
                # Its last token is under way. The device works in order, so whoever gets its
                # memory comes after it.
                self.queues.remove(request)
        return flight

    def _land(self, flight: Flight) -> list[Request]:
        """Wait for a step's tokens and hand them out. Returns the requests that got one."""
        plan, logits = flight.plan, flight.logits
        count = len(plan.sampled)
        flight.wait()
        tokens = read_tokens(plan.sampled, logits[:count], flight.tokens_on_host)
        score_prompts(plan.scored, logits[count:])
        landed, rows = [], []
        for row, (request, token) in enumerate(zip(plan.sampled, tokens, strict=True)):
            request.num_unread_tokens -= 1
            if request.status == "finished":
                continue  # aborted, or stopped by the token before, while this one was computed
            request.append(token)
            landed.append(request)
            rows.append(row)
        decided = self._decide(landed, GRAMMAR_SECONDS)
        if flight.log is not None:
            finished = tuple(r.request_id for r in decided if r.status == "finished")
            record = record_of(flight, self.num_steps, finished, self.queues)
            for observer in self.observers:
                observer(record, landed, logits[rows])
        self.num_steps += 1
        return decided

    def _decide(self, requests: Sequence[Request], seconds: float) -> list[Request]:
        """Finish those whose token was their last. Returns all of whom that is known now: their
        grammars get so much time to say it, together."""
        decided, end = [], time.monotonic() + seconds
        for request in requests:
            if request.status == "finished":
                continue  # aborted while it was undecided
            guide = request.guide
            request.awaits_guide = guide is not None and not guide.wait(end - time.monotonic())
            if request.awaits_guide:
                self._undecided.append(request)
                continue
            reason = finish_reason(request, self.max_model_len)
            if reason is not None:
                self.finish(request.request_id, reason)
            decided.append(request)
        return decided

    def _take_undecided(self) -> list[Request]:
        taken, self._undecided = self._undecided, []
        return taken

    @property
    def is_stalled(self) -> bool:
        """Whether all there is to do waits for a grammar."""
        return (
            bool(self._undecided)
            and self._flight is None
            and all(request.awaits_guide for request in self.requests.values())
        )
