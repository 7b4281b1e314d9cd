"""`AsyncLLM`: what `LLM` is, for an event loop, with the engine in a process of its own.

Invariant: the same prompts and parameters give the same outputs as `LLM` gives; a call that is
cancelled, or fails, leaves nothing behind in the engine.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from plamo_ref.engine.config import EngineError
from plamo_ref.engine.outputs import (
    CompletionOutput,
    RequestOutput,
    StreamPiece,
    readable_logprobs,
)
from plamo_ref.engine.prompts import Asked, completions_asked
from plamo_ref.engine.request import RequestTimes
from plamo_ref.intake.prompts import ParamsLike, PromptsLike
from plamo_ref.intake.vllm_names import CALL, speaks_vllm
from plamo_ref.remote.calls import Delta, GrammarRefusedError, Job
from plamo_ref.remote.client import EngineClient
from plamo_ref.remote.messages import Stats
from plamo_ref.remote.supervisor import State
from plamo_ref.sampling import SamplingParams


class Watched(Protocol):
    """What can be said of an engine by looking at it."""

    @property
    def state(self) -> State: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def num_restarts(self) -> int: ...


class AsyncLLM(EngineClient):
    """An engine for an event loop: use it in `async with`, or `start` and `close` it.

    Arguments and errors are those of `EngineClient`, whose methods it has as well.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._names = itertools.count()
        self._seats = asyncio.Semaphore(self.max_requests)

    @property
    def replicas(self) -> Mapping[str, Watched]:
        """The engines that share the work, by name; none: it is one engine."""
        return {}

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without sampling parameters gets, as the checkpoint says."""
        return SamplingParams(**self.sampling_defaults)

    @speaks_vllm(CALL, EngineError)
    async def generate(
        self, prompts: PromptsLike | None = None, sampling_params: ParamsLike = None
    ) -> list[RequestOutput]:
        """Complete all prompts together; arguments, results and their order as of `LLM.generate`.

        Raises:
            PlamoRefError: as `LLM.generate`; or the engine has ended meanwhile.
        """
        asked = self._asked(prompts, sampling_params)
        queued = time.perf_counter()
        tasks = [asyncio.ensure_future(self._deltas_of(one)) for one in asked]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        both = list(zip(asked, results, strict=True))
        groups = itertools.groupby(both, key=lambda pair: pair[0].prompt_index)
        return [self._output(list(group), queued) for _, group in groups]

    async def stream(
        self, prompts: PromptsLike | None = None, sampling_params: ParamsLike = None
    ) -> AsyncGenerator[StreamPiece, None]:
        """Yield every token as it comes, of all prompts together; as `LLM.stream`.

        Raises:
            PlamoRefError: as `generate`.
        """
        asked = self._asked(prompts, sampling_params)
        names = [str(next(self._names)) for _ in asked]
        jobs = [Job(one.prompt_ids, one.params, one.borders) for one in asked]
        async with aclosing(self.deltas(jobs)) as deltas:
            async for delta in deltas:
                one = asked[delta.index]
                yield StreamPiece(
                    names[delta.index],
                    one.prompt_index,
                    one.number,
                    delta.token_id,
                    delta.text,
                    delta.finish_reason,
                )

    def _asked(self, prompts: Any, sampling_params: Any) -> list[Asked]:
        default = self.get_default_sampling_params()
        return list(completions_asked(prompts, sampling_params, self.tokenizer, default))

    async def _deltas_of(self, asked: Asked) -> tuple[list[Delta], str | None]:
        """All tokens of a completion, and what ended it if its grammar led nowhere."""
        deltas: list[Delta] = []
        async with self._seats:
            batches = self.batches([Job(asked.prompt_ids, asked.params, asked.borders)])
            try:
                async with aclosing(batches):
                    async for batch in batches:
                        deltas += batch
            except GrammarRefusedError as error:
                if not deltas:
                    raise
                return deltas, str(error)
        return deltas, None

    def _output(
        self, group: Sequence[tuple[Asked, tuple[list[Delta], str | None]]], queued: float
    ) -> RequestOutput:
        first, (deltas, _) = group[0]
        scored = first.params.prompt_logprobs is not None
        scores = deltas[0].prompt_logprobs or () if deltas else ()
        waits = list(itertools.accumulate(delta.waited for delta in deltas))
        return RequestOutput(
            request_id=str(next(self._names)),
            prompt=first.prompt,
            prompt_token_ids=first.prompt_ids,
            outputs=tuple(self._completion(asked, *result) for asked, result in group),
            finished=True,
            metrics=RequestTimes(queued, queued + waits[0], queued + waits[-1])
            if waits
            else RequestTimes(queued),
            prompt_logprobs=(None, *readable_logprobs(scores, self.tokenizer)) if scored else None,
            num_cached_tokens=deltas[0].num_cached_tokens if deltas else None,
        )

    def _completion(
        self, asked: Asked, deltas: Sequence[Delta], error: str | None
    ) -> CompletionOutput:
        last = deltas[-1]
        scores = [delta.logprobs for delta in deltas if delta.logprobs is not None]
        wanted = asked.params.logprobs is not None
        return CompletionOutput(
            index=asked.number,
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(delta.token_id for delta in deltas),
            finish_reason="error" if error is not None else last.finish_reason,
            stop_reason=last.stop_reason,
            logprobs=readable_logprobs(scores, self.tokenizer) if wanted else None,
            error=error,
        )
