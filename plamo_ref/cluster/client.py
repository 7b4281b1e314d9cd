"""`ReplicatedAsyncLLM`: an `AsyncLLM` whose work is done by replicas.

Invariant: what `AsyncLLM` promises holds: the same prompts and parameters give the same outputs,
every call ends, what is under way is bounded, and who leaves is forgotten. A lost replica ends the
calls that it worked on with an error; no other call notices.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from plamo_ref.cluster.handle import Handle
from plamo_ref.cluster.policy import PrefixRouting
from plamo_ref.cluster.seat import Seat
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import Call, EngineUnavailableError, Job, check_room
from plamo_ref.remote.supervisor import State

BOUND = 8  # requests by which a replica may be busier and still be sent those whose prefix it has
LOOK_SECONDS = 0.1  # between two looks at replicas that start
# Of the states of several replicas the one that says what a client can have.
BEST: Sequence[State] = ("ready", "stalled", "starting", "restarting", "dead", "closed")
Part = list[tuple[int, Job]]  # jobs, with their places in the call


class ReplicatedAsyncLLM(AsyncLLM):
    """An engine for an event loop, in as many copies as there are handles.

    Args:
        handles: the ways to the replicas.
        settings: as of `AsyncLLM`.
    """

    def __init__(
        self, model: str | Path, handles: Sequence[Handle], *, config: EngineConfig, **settings: Any
    ) -> None:
        super().__init__(model, config=config, **settings)
        self._routing = PrefixRouting(BOUND, by_prefix=config.enable_prefix_caching is not False)
        self._places = [self._seat(number, handle) for number, handle in enumerate(handles)]
        self._watching: list[asyncio.Task[None]] = []
        self._working: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def _seat(self, number: int, handle: Handle) -> Seat:
        return Seat(str(number), handle, lambda: self._routing.forget(number))

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait until all replicas can work.

        Raises:
            EngineError: one of them cannot; the message is its own.
        """
        self._watching = [asyncio.create_task(seat.watch()) for seat in self._places]
        while any(seat.state != "ready" for seat in self._places):
            for seat in self._places:
                if seat.state == "dead":
                    raise EngineError(f"replica {seat.name}: {seat.report.end}")
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """End what runs. The replicas are Ray's, and stay."""
        self._closed = True
        tasks = [*self._watching, *self._working.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def state(self) -> State:
        """The best of the replicas'."""
        if self._closed:
            return "closed"
        return min((seat.state for seat in self._places), key=BEST.index)

    @property
    def replicas(self) -> Mapping[str, Seat]:
        return {seat.name: seat for seat in self._places}

    @property
    def num_restarts(self) -> int:
        return sum(seat.num_restarts for seat in self._places)

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and output together, that a request may have, wherever it goes."""
        return min(seat.report.max_model_len for seat in self._ready().values())

    @property
    def vocab_size(self) -> int:
        return next(iter(self._ready().values())).report.vocab_size

    @property
    def num_requests(self) -> int:
        return sum(seat.num_requests for seat in self._places)

    async def reset_prefix_cache(self) -> bool:
        """Forget what was computed for those who have ended, in every replica."""
        for number, _ in enumerate(self._places):
            self._routing.forget(number)
        await asyncio.gather(*(seat.reset_prefix_cache() for seat in self._ready().values()))
        return True

    # --- work: what `batches` asks for ---------------------------------------------------------

    def _ready(self) -> dict[int, Seat]:
        """Those that can take requests, by number.

        Raises:
            EngineUnavailableError: nobody can.
        """
        ready = {n: seat for n, seat in enumerate(self._places) if seat.state == "ready"}
        if self._closed or not ready:
            raise EngineUnavailableError(f"the engine is {self.state}: try again later")
        return ready

    async def _submit(self, call: Call, jobs: Sequence[Job], ids: list[str]) -> None:
        self._ready()
        check_room(len(jobs), self.num_requests, self.max_requests)
        self._share_out(call, list(enumerate(jobs)), ids)

    def _share_out(self, call: Call, jobs: Part, ids: list[str]) -> None:
        """Give the jobs to replicas; `ids` gets the names of those who work on them."""
        seats = self._ready()
        parts: dict[int, Part] = {}
        for prompt_ids, group in itertools.groupby(jobs, key=lambda pair: pair[1].prompt_ids):
            part = list(group)  # the completions of a prompt stay together
            loads = {number: seat.num_requests for number, seat in seats.items()}
            chosen = self._routing.choose(prompt_ids, part[0][1].params.cache_salt, loads)
            seats[chosen].num_requests += len(part)
            parts.setdefault(chosen, []).extend(part)
        for number, part in parts.items():
            self._work(seats[number], call, part, ids)

    def _work(self, seat: Seat, call: Call, part: Part, ids: list[str]) -> None:
        """Let a replica do a part of a call."""
        name = str(next(self._numbers))

        def ended(task: asyncio.Task[None]) -> None:
            seat.num_requests -= len(part)
            del self._working[name]
            if task.cancelled():  # the call has left, or nobody answers any more
                call.fail(EngineUnavailableError("the engine was shut down"))
            elif isinstance(error := task.exception(), Exception):
                call.fail(error)

        ids.append(name)
        self._working[name] = task = asyncio.create_task(self._listen(seat, call, part, ids))
        task.add_done_callback(ended)

    async def _listen(self, seat: Seat, call: Call, part: Part, ids: list[str]) -> None:
        whole, jobs = call.limit is None, [job for _, job in part]
        try:
            async with aclosing(seat.batches(jobs, whole=whole)) as batches:
                async for batch in batches:
                    deltas = [replace(delta, index=part[delta.index][0]) for delta in batch]
                    for delta in deltas:
                        call.put(delta)
                    for observer in self.observers:
                        observer(deltas)
        except EngineUnavailableError:  # nothing was started there: somewhere else, then
            self._share_out(call, part, ids)

    def _abort(self, request_ids: Sequence[str]) -> None:
        """Stop listening; the replica then aborts what is left."""
        for name in request_ids:
            task = self._working.get(name)
            if task is not None:
                task.cancel()
