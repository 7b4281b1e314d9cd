"""The loop: schedule, build the batch, run, sample, update. It knows token ids, no text.

Invariant: between two steps every unfinished request is either waiting without memory or running
with what `num_computed_tokens` needs; the tokens of a request depend on the request alone.
Built in notebooks/07_continuous_batching.ipynb.
"""

import time
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from plamo_ref.engine.batching import BatchPlan, build_batch
from plamo_ref.engine.choosing import choose, finish_reason, score_prompts
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.planner import MemoryPlan
from plamo_ref.engine.record import ScheduledTokens, StepRecord, memory_in_use
from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduler import Queues, Schedule, Scheduler
from plamo_ref.engine.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduler_v1 import V1Scheduler
from plamo_ref.sampling import Guide, SamplingParams

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
        self.max_model_len = self._longest()

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
        self._check(request_id, prompt_ids, params)
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

    # --- one step ------------------------------------------------------------------------------

    def step(self) -> list[Request]:
        """Compute one batch. Returns the requests that got a token, finished or not."""
        started = time.perf_counter()
        schedule = self.scheduler.schedule()
        scheduled = time.perf_counter()
        if not schedule:
            return []
        plan = build_batch(schedule, self.cache, self.runner.device)
        logits = self.runner.run(plan.batch)
        tokens = choose(plan.sampled, logits[: len(plan.sampled)])
        score_prompts(plan.scored, logits[len(plan.sampled) :])
        shares = _shares(plan, schedule) if self.observers else ()
        memory = memory_in_use(self.cache) if self.observers else ({}, 0)
        finished = self._update(plan, schedule, tokens)
        if self.observers:
            record = StepRecord(
                step=self.num_steps,
                scheduled=shares,
                admitted=tuple(r.request_id for r in schedule.admitted),
                preempted=tuple(r.request_id for r in schedule.preempted),
                finished=finished,
                num_waiting=len(self.queues.waiting),
                num_running=len(self.queues.running),
                blocks_used=memory[0],
                slots_used=memory[1],
                started=started,
                schedule_seconds=scheduled - started,
                total_seconds=time.perf_counter() - started,
            )
            for observer in self.observers:
                observer(record, plan.sampled, logits[: len(plan.sampled)])
        self.num_steps += 1
        return list(plan.sampled)

    def _update(
        self, plan: BatchPlan, schedule: Schedule, tokens: Sequence[int]
    ) -> tuple[str, ...]:
        """Count what was computed, hand out the tokens. Returns the ids of finished requests."""
        for request in plan.requests:
            request.num_computed_tokens += schedule.tokens[request]
        finished = []
        for request, token in zip(plan.sampled, tokens, strict=True):
            request.append(token)
            reason = finish_reason(request, self.max_model_len)
            if reason is not None:
                self.finish(request.request_id, reason)
                finished.append(request.request_id)
        return tuple(finished)

    # --- limits --------------------------------------------------------------------------------

    def _longest(self) -> int:
        """Tokens, prompt and output together, that a request may reach."""
        config = self.config
        fits = min(self.cache.longest_request(), self.runner.model.config.max_position_embeddings)
        wanted = config.max_model_len
        if wanted is not None and wanted > fits:
            raise EngineError(
                f"max_model_len={wanted:,} does not fit: the cache holds {int(fits):,} tokens of "
                "one request; raise memory_bytes or lower max_model_len"
            )
        longest = int(fits) if wanted is None else wanted
        if config.scheduler == "v0" and config.chunk_size is None:
            longest = min(longest, config.max_num_batched_tokens)  # a prompt is one step's work
        return longest

    def _check(self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        if request_id in self.requests:
            raise EngineError(f"request {request_id} is already running")
        if not prompt_ids:
            raise EngineError(f"request {request_id}: the prompt has no tokens")
        size = self.runner.model.config.vocab_size
        for place, token in enumerate(prompt_ids):
            if not 0 <= token < size:
                raise EngineError(
                    f"request {request_id}: prompt token {place} is {token}; "
                    f"the vocabulary has ids 0 to {size - 1}"
                )
        for token in (*params.logit_bias, *params.stop_token_ids):
            if not 0 <= token < size:
                raise EngineError(
                    f"request {request_id}: logit_bias or stop_token_ids names token {token}; "
                    f"the vocabulary has ids 0 to {size - 1}"
                )
        if len(prompt_ids) >= self.max_model_len:
            cure = "give the cache more memory or raise max_model_len"
            if self.config.scheduler == "v0" and self.config.chunk_size is None:
                cure = "scheduler='v0' computes a prompt in one step: set chunk_size, or raise "
                cure += "max_num_batched_tokens"
            raise EngineError(
                f"request {request_id}: the prompt has {len(prompt_ids):,} tokens, but prompt and "
                f"output together may have {self.max_model_len:,}; {cure}"
            )


def _shares(plan: BatchPlan, schedule: Schedule) -> tuple[ScheduledTokens, ...]:
    """Who computed what, read before the counters move on."""
    sampled = set(plan.sampled)
    return tuple(
        ScheduledTokens(
            request_id=request.request_id,
            start=request.num_computed_tokens,
            num_tokens=schedule.tokens[request],
            kind="decode"
            if request.is_decoding
            else ("recompute" if request.num_preemptions else "prefill"),
            sampled=request in sampled,
        )
        for request in plan.requests
    )
