"""The loop: schedule, build the batch, run, sample, update. It knows token ids, no text.

A step is launched and, later, landed: its tokens are read. With overlap the next one is launched
before, so the device never waits: who goes on for certain does so with a token that only it knows.

Invariant: between two steps every unfinished request is either waiting without memory or running
with what `num_computed_tokens` needs; the tokens of a request depend on the request alone, not on
what is raised in a step either: who finds `_torn` set lets recovery.py make the state anew.
Built in notebooks/07_continuous_batching.ipynb, the overlap in 13_cuda_graphs_and_overlap.ipynb.
"""

import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from plamo_ref.engine.batching import BatchPlan, Unread, build_batch
from plamo_ref.engine.blame import Work, is_nobodys, together_or_alone
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.drafts import accept, launched
from plamo_ref.engine.endings import awaits_guide, finish_reason, is_leaving, most_outputs
from plamo_ref.engine.flight import Flight, Observer, Told
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import begun, landed
from plamo_ref.engine.recovery import rebuild
from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.engine.runner import ModelRunner, RecordsAhead
from plamo_ref.engine.scheduling.limits import Limits, longest_request
from plamo_ref.engine.scheduling.scheduler import Queues, Scheduler
from plamo_ref.engine.scheduling.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.engine.settled import apart, count, settle
from plamo_ref.engine.tokens import choose_on_device, read_tokens, score_prompt
from plamo_ref.sampling import Guide, SamplingParams
from plamo_ref.sampling.adjust import Tables

GRAMMAR_SECONDS = 0.01  # for the grammars of a step: a mask takes a hundredth of that


class EngineCore:
    """All requests of one model on one device."""

    def __init__(self, runner: ModelRunner, plan: MemoryPlan, config: EngineConfig) -> None:
        self.runner, self.config = runner, config
        self.cache = plan.new_cache()
        self.queues = Queues(config, self.cache, plan.max_num_seqs)
        policy = V0Scheduler if config.scheduler == "v0" else V1Scheduler
        self.scheduler: Scheduler = policy(self.queues)
        self.requests: dict[str, Request] = {}
        self.observers: list[Observer] = []
        self.num_steps = self._arrivals = 0
        self.max_model_len = longest_request(config, self.cache, runner.model.config)
        self._limits = Limits(config, runner.model.config.vocab_size, self.max_model_len)
        self._overlap = config.resolve_overlap(runner.device)
        self.tables: Tables | None = None  # whoever builds the engine may bring some
        self.warm_up: RecordsAhead | None = None  # … and what can be done in idle moments
        self._flight: Flight | None = None  # launched, not landed
        self._undecided: list[Request] = []  # have a token on which their grammar has to speak
        self._moved: list[Request] = []  # what `step` has to return
        self._torn = self._mended = False  # torn: something is being changed; see `recover`

    # --- requests come and go ------------------------------------------------------------------

    def add(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        stop_ids: Collection[int] = (),
        request_id: str | None = None,
        guide: Guide | None = None,
        borders: Collection[int] = (),
    ) -> Request:
        """Queue a request, unless anything is raised. `guide` follows `params.guided`; `borders`
        are positions in the prompt behind which others may go another way.

        Raises:
            EngineError: it could never run: empty, too long, or not made of known tokens.
        """
        self.recover()
        request_id = str(self._arrivals) if request_id is None else request_id
        if request_id in self.requests:
            raise EngineError(f"request {request_id} is already running")
        prompt = self._limits.check(request_id, prompt_ids, params)
        stops = frozenset({*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)})
        # Without a seed they still must not share their random numbers.
        seed = params.seed if params.seed is not None else (self.config.seed << 32) + self._arrivals
        request = Request(request_id, prompt, params, stops, seed, self._arrivals, guide)
        request.borders = tuple(borders)
        request.max_output_tokens = most_outputs(len(prompt), params, self.max_model_len)
        self._torn = True
        self._arrivals += 1
        self.queues.add(request)
        self.requests[request_id] = request  # from here on it is there
        self._torn = False
        return request

    def finish(
        self, request_id: str, reason: FinishReason = "abort", error: Exception | None = None
    ) -> None:
        """End a request now, whatever it is doing. Unknown or finished ones are ignored."""
        self.recover()
        if (request := self.requests.get(request_id)) is not None:
            self._torn = True
            self._end(request, reason, error)
            self._torn = False

    def reset_prefix_cache(self) -> None:
        """Forget what was computed for those who have ended."""
        self.recover()
        self._torn = True
        self.queues.prefix.reset()
        self._torn = False

    def _end(self, request: Request, reason: FinishReason, error: Exception | None = None) -> None:
        request.finish(reason, error)
        self.queues.remove(request)
        if self.tables is not None:
            self.tables.release(request)
        del self.requests[request.request_id]

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def in_flight(self) -> Flight | None:
        """The step that was launched and has not landed; always None without overlap."""
        return self._flight

    # --- one step ------------------------------------------------------------------------------

    def step(self) -> list[Request]:
        """Launch one batch and land one. Returns the requests that moved: they got a token and may
        have finished with it, or they ended with an error of their own (`Request.error`).

        With overlap the batch that lands is the one launched a step ago: the first call returns
        nobody. Who waits for a grammar is returned when it is known whether a token is the last.

        Whatever is raised, the next call goes on, with the tokens that would have been. No call may
        have told of some of them: who counts those that it has seen misses none.
        """
        self.recover()
        self._torn = True
        try:
            told = self._advance()
        except BaseException:
            self.recover()
            raise
        self._torn = False
        if told is not None:
            for observer in self.observers:
                observer(*told)
        moved, self._moved = list(dict.fromkeys(self._moved)), []
        return moved

    def recover(self) -> None:
        """Make the state whole, if something was raised in a change: each change begins so."""
        if self._torn:
            self._flight = None
            if self.tables is not None:
                self.tables.clear()
            self._moved += rebuild(self.requests, self.queues)
            self._undecided = [r for r in self.requests.values() if r.awaits_guide]
            self._torn, self._mended = False, True

    def _advance(self) -> Told | None:
        seconds = GRAMMAR_SECONDS if self.is_stalled else 0
        undecided, self._undecided = self._undecided, []
        mended, self._mended = self._mended, False
        if self._decide(undecided, seconds) and not mended:
            return None  # who has just been told of a token gets the next one in the next call
        told, flying = None, self._flight
        if flying is not None and flying.needs_host(self.tables is not None, self.queues.drafter):
            told, flying, self._flight = self._land(flying), None, None
        self._flight = self._launch(flying)
        if flying is None and not self._overlap:
            flying, self._flight = self._flight, None
        return told if flying is None else self._land(flying)

    def _launch(self, previous: Flight | None) -> Flight | None:
        """Decide and start the next step. Nothing here waits for the device."""
        started = time.perf_counter()
        schedule = self.queues.with_photographs(self.scheduler.schedule())
        times = (started, time.perf_counter())
        if not schedule:
            return None
        unread = None if previous is None else Unread(previous.tokens, previous.plan.sampled)
        plan = build_batch(schedule, self.cache, self.runner.place, unread)
        if self.cache.copies:
            self.runner.copy(self.cache.copies)
        logits = self.runner.run(plan.batch, plan.rows)
        tokens = self._choose(plan, logits, unread)
        launched(self.queues, schedule)
        if self.observers and self._overlap:
            logits = logits.clone()  # a recorded step writes where the last one wrote
        told = (plan.requests, plan.sampled, schedule, self.cache, *times)
        record = begun(*told) if self.observers else None
        flight = Flight.of(plan, logits, tokens, record)
        count(schedule.tokens)
        for request in filter(is_leaving, settle(plan.sampled, self.cache)):
            # The device works in order, so whoever gets its memory comes after it.
            self.queues.remove(request)
        return flight

    def _choose(self, plan: BatchPlan, logits: Tensor, unread: Unread | None) -> Tensor:
        """A token for each row that gets one; ends those whose choice is an error."""
        wanted, ops = plan.drafts.chosen(plan.sampled), self.runner.model.ops
        chosen, errors = together_or_alone(
            len(wanted),
            lambda rows: choose_on_device(
                wanted[rows], logits[rows], ops, plan.numbers[rows], self.tables, unread
            ),
            instead=logits.new_zeros(1, dtype=torch.long),
        )
        self._blame(wanted, errors)
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen)

    def _land(self, flight: Flight) -> Told | None:
        """Wait for a step's tokens and hand them out. Returns what its observers are told."""
        plan, logits, on_host = flight.plan, flight.logits, flight.tokens_on_host
        count, row = len(plan.sampled), len(plan.numbers)
        flight.wait()
        self.queues.landed()
        self.runner.check()
        parts, errors = together_or_alone(
            count,
            lambda rows: read_tokens(plan.sampled[rows], logits[:count][rows], on_host[rows]),
            instead=[0],
        )
        self._blame(plan.sampled, errors)
        for request, places in plan.scored:
            self._work_for(request, score_prompt, request, places, logits[row : row + len(places)])
            row += len(places)
        moved, rows = list[Request](), list[int]()
        tokens = (token for part in parts for token in part)
        for row, (request, token) in enumerate(zip(plan.sampled, tokens, strict=True)):
            request.num_unread_tokens -= 1
            if request.status == "finished":
                continue  # aborted, or stopped by the token before, while this one was computed
            append = request.append
            append(token) if request.guide is None else self._work_for(request, append, token)
            moved.append(request)
            rows.append(row)
        accept(self.queues.drafter, plan.drafts, on_host, moved, rows)
        self._decide(moved, GRAMMAR_SECONDS)
        self.num_steps += 1
        if flight.record is None:
            return None
        return landed(flight.record, self.num_steps - 1, moved, self.queues), moved, logits[rows]

    # --- what a token means --------------------------------------------------------------------

    def _decide(self, requests: Sequence[Request], seconds: float) -> bool:
        """Finish those whose token was their last. Their grammars get so much time to say it,
        together; whoever waits longer is undecided. Returns whether anybody was decided."""
        end, told = time.monotonic() + seconds, len(self._moved)
        onward, asked = apart(requests)
        self._moved += onward
        for request in asked:
            if request.status == "finished":
                continue  # aborted while it was undecided, or its token was an error
            if request.guide is not None and awaits_guide(request, end):
                self._undecided.append(request)
                continue
            self._moved.append(request)
            # What follows from it is everybody's: an error in that leaves the books undone.
            if (reason := self._work_for(request, finish_reason, request)) is not None:
                self._end(request, reason)
            elif is_leaving(request):
                self.queues.remove(request)
        return len(self._moved) > told

    @property
    def is_stalled(self) -> bool:
        """Whether all there is to do waits for a grammar."""
        rest = all(request.awaits_guide for request in self.requests.values())
        return bool(self._undecided) and self._flight is None and rest

    # --- whose error it is ---------------------------------------------------------------------

    def _work_for(self, request: Request, work: Work, *args: object) -> FinishReason | None:
        """Do something that concerns one request: an error in it ends this request alone."""
        try:
            return work(*args)
        except Exception as error:
            if is_nobodys(error):
                raise
            self._blame([request], {0: error})
            return None

    def _blame(self, requests: Sequence[Request], errors: Mapping[int, Exception]) -> None:
        """End the requests that made these errors, by row."""
        for request, error in ((requests[row], error) for row, error in errors.items()):
            if request.status != "finished":
                self._moved.append(request)
                self._end(request, "error", error)
