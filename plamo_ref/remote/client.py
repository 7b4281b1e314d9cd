"""`EngineClient`: the engine in its own process, seen from an event loop. Text is made here.

Invariant: every call of `batches` ends: with its last token, with an error, or by being closed;
and when it ends, however that is, the engine holds nothing of it. What is under way is bounded: by
`max_requests` requests, and for each call by `max_unread` tokens that nobody has fetched.

Text is made, and stop strings are found, while the engine process computes its next step; so a
request that a stop string ends computes a token or two in vain, which nobody sees.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.intake.checkpoint_files import CONFIG_FILE
from plamo_ref.intake.generation_file import GenerationFile
from plamo_ref.intake.hub import find_checked
from plamo_ref.intake.values import Number, Whole, read
from plamo_ref.intake.vllm_names import MODEL, speaks_vllm
from plamo_ref.remote.calls import (
    Call,
    Delta,
    GrammarRefusedError,
    Job,
    RequestRefusedError,
    Stream,
    check_room,
    checked,
    tell,
)
from plamo_ref.remote.messages import (
    Abort,
    Audit,
    Audited,
    Refused,
    Reset,
    Stats,
    Step,
    ToFront,
    Token,
)
from plamo_ref.remote.supervisor import State, Supervisor
from plamo_ref.text.loading import check_vocabulary
from plamo_ref.text.stream import TextStream
from plamo_ref.text.tokenizer import Plamo2Tokenizer

LONG_IDS = 1 << 16  # tokens of prompts that are told to the engine before others have their turn
Observer = Callable[[Sequence[Delta]], None]  # called with all that a step has given


class EngineClient:
    """An engine in a process of its own. `start` it, or use it in `async with`.

    Args:
        model: "tiny", a checkpoint folder, or a hub id.
        revision, cache_dir, offline: for hub ids, see `plamo_ref.intake.hub.find`.
        max_requests: how many may be under way, waiting ones included.
        max_unread: tokens of a call that may wait to be fetched.
        max_restarts: how often in a row an engine that dies by itself is started again; 0: never,
            whatever it dies of.
        stall_seconds: after so long without progress the engine is "stalled", after twice as long
            it is ended, and started again; what is long by nature is allowed for.
        config, engine: an `EngineConfig`, or its fields.

    Raises:
        PlamoRefError: the model or a setting cannot be used; the message says what to change.
    """

    @speaks_vllm(MODEL, EngineError)
    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        offline: bool = False,
        max_requests: int = 1024,
        max_unread: int = 4096,
        max_restarts: int = 3,
        stall_seconds: float = 10.0,
        config: EngineConfig | None = None,
        **engine: Any,
    ) -> None:
        config = EngineConfig.of(config, engine)
        where = {"revision": revision, "cache_dir": cache_dir, "offline": offline}
        self.folder = find_checked(EngineError, model=model, **where)
        self.tokenizer = Plamo2Tokenizer.from_folder(self.folder)
        shape = Plamo2Config.from_file(self.folder / CONFIG_FILE)
        check_vocabulary(self.tokenizer, self.folder, shape.vocab_size)
        given = (config.load_format, config.generation_config)
        # Fields of SamplingParams, for who names none.
        self.sampling_defaults = GenerationFile.chosen(self.folder, shape, *given).sampling
        some, any_number = Whole("1 or more", least=1), Whole("0 or more")
        self.max_requests = read(EngineError, "max_requests", max_requests, some)
        self.max_unread = read(EngineError, "max_unread", max_unread, some)
        positive = Number("above 0", lambda seconds: seconds > 0)
        restarts = read(EngineError, "max_restarts", max_restarts, any_number)
        stall = read(EngineError, "stall_seconds", stall_seconds, positive)
        self.stats = Stats()
        self.observers: list[Observer] = []
        settings = (asdict(config), restarts, stall)
        self._life = Supervisor(self.folder, *settings, self._hear, self._lost)
        self._streams: dict[str, Stream] = {}
        self._audits: dict[int, asyncio.Future[Audited]] = {}
        self._numbers = itertools.count()

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine and wait until it can work.

        Raises:
            EngineError: it cannot; the message is the engine's own.
        """
        await self._life.start()

    async def close(self) -> None:
        """End what runs, stop the engine. Afterwards the object is of no use."""
        await self._life.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def dead(self) -> asyncio.Event:
        """Set once the engine has gone and no other will come; `end` says why."""
        return self._life.dead

    @property
    def end(self) -> str:
        return self._life.end

    @property
    def num_restarts(self) -> int:
        return self._life.num_restarts

    # --- work ----------------------------------------------------------------------------------

    async def deltas(self, jobs: Sequence[Job]) -> AsyncGenerator[Delta, None]:
        """As `batches`, token by token, of whichever job."""
        async with aclosing(self.batches(jobs)) as batches:
            async for batch in batches:
                for delta in batch:
                    yield delta

    async def batches(
        self, jobs: Sequence[Job], *, whole: bool = False
    ) -> AsyncGenerator[list[Delta], None]:
        """As `deltas`, but everything that has come since the last time at once, so that who is
        behind catches up; with `whole`, everything at the end.

        Closing the generator, or cancelling who waits for it, aborts what is left.

        Raises:
            EngineUnavailableError, EngineBusyError: nothing was started.
            RequestRefusedError: a job can never run, is none, or there are too many for any time.
            EngineDiedError: the engine ended meanwhile.
            SlowReaderError: too many tokens were not fetched.
        """
        jobs = [checked(job) for job in jobs]
        call = Call(len(jobs), None if whole else self.max_unread * len(jobs))
        ids: list[str] = []
        try:
            await self._submit(call, jobs, ids)
            while call.unfinished or call.deltas:
                await call.news.wait()
                if batch := call.take():
                    yield batch
                if call.unfinished and call.error is not None and not call.deltas:
                    raise call.error
        finally:
            self._abort(ids)

    async def audit(self) -> Audited:
        """Let the engine check its books, between two steps.

        Raises:
            EngineUnavailableError, EngineDiedError: there is, or was, no engine to ask.
        """
        number = next(self._numbers)
        answer = self._audits[number] = asyncio.get_running_loop().create_future()
        try:
            self._life.engine.send(Audit(number))
            return await answer
        finally:
            del self._audits[number]

    async def reset_prefix_cache(self) -> bool:
        """Forget what was computed for those who have ended. Always works, so it returns True."""
        self._life.engine.send(Reset())
        return True

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and output together, that a request may have."""
        return self._life.facts.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._life.facts.vocab_size

    @property
    def engine_pid(self) -> int:
        return self._life.engine.pid

    @property
    def num_requests(self) -> int:
        """Requests under way, waiting ones included."""
        return len(self._streams)

    async def _submit(self, call: Call, jobs: Sequence[Job], ids: list[str]) -> None:
        """Hand the jobs to the engine; `ids` gets those of whom it may have heard."""
        child = self._life.engine
        check_room(len(jobs), self.num_requests, self.max_requests)
        for index, job in enumerate(jobs):  # they all count from now on
            request_id = str(next(self._numbers))
            self._streams[request_id] = Stream(call, index, TextStream(self.tokenizer, job.params))
            ids.append(request_id)
        said = 0
        for request_id, job in zip(ids, jobs, strict=True):
            said += len(job.prompt_ids)
            if said > LONG_IDS:
                said = 0
                await asyncio.sleep(0)
                if call.error is not None:  # the engine has gone meanwhile, or refused one
                    return
            tell(child.send, request_id, job)

    def _abort(self, request_ids: Sequence[str]) -> None:
        """Forget these requests; tell the engine about those it may still work on."""
        live = [i for i in request_ids if self._streams.pop(i, None) is not None]
        if live:
            self._life.tell(Abort(live))

    def _lost(self, error: Exception) -> int:
        """There is no engine any more: nobody shall wait for it. Returns how many did."""
        self.stats, count = Stats(), len(self._streams)
        for stream in self._streams.values():
            stream.call.fail(error)
        self._streams.clear()
        for answer in self._audits.values():
            if not answer.done():
                answer.set_exception(error)
        return count

    # --- what the engine says ------------------------------------------------------------------

    def _hear(self, message: ToFront) -> None:
        match message:
            case Step(tokens, stats):
                self.stats = self.stats if stats is None else stats
                self._take(tokens)
            case Refused(request_id, text, grammar):
                stream = self._streams.pop(request_id, None)
                if stream is not None:
                    kind = GrammarRefusedError if grammar else RequestRefusedError
                    stream.call.fail(kind(text))
            case Audited(number):
                answer = self._audits.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(message)

    def _take(self, tokens: Sequence[Token]) -> None:
        now, deltas = time.perf_counter(), []
        for token in tokens:
            stream = self._streams.get(token.request_id)
            if stream is None:
                continue  # aborted a moment ago
            delta = stream.push(token, now)
            stream.call.put(delta)
            deltas.append(delta)
            if token.finish_reason is not None:
                del self._streams[token.request_id]
            elif delta.finish_reason is not None or stream.call.error is not None:
                self._abort([token.request_id])
        for observer in self.observers:
            observer(deltas)
