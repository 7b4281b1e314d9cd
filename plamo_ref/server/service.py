"""What all routes share: prompts to ids, limits, and jobs run with their times taken.

Invariant: whatever reaches the engine is within the limits, and every `run` that begins is counted
as finished once: with a reason, as an error, or as aborted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import msgspec

from plamo_ref.chat.templates import ChatTemplate
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import Delta, Job
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge.workers import Workers
from plamo_ref.server.errors import bad, conflict
from plamo_ref.server.metrics import Metrics

T = TypeVar("T")

LONG_TEXT = 4096  # characters that would keep the event loop too long
LONG_IDS = 1 << 14  # tokens likewise, which are handed on as they are
TOKEN_BYTES = 5  # at most, on its way to the engine
LONG_ANSWER = 1024  # tokens, perhaps with their log probabilities
DELTAS = 256  # that are turned into an answer before others have their turn


class Service:
    """A model, its limits, its template and its numbers."""

    def __init__(
        self, llm: AsyncLLM, config: ServerConfig, template: ChatTemplate | None = None
    ) -> None:
        self.llm, self.template = llm, template
        self.config = replace(config, sampling_defaults=llm.sampling_defaults)
        self.metrics = Metrics(llm)
        self.workers = Workers()
        self.started = int(time.time())

    @cached_property
    def _longest_piece(self) -> int:
        return max(len(text) for text, _, _ in self.llm.tokenizer.rows)

    @property
    def max_characters(self) -> int:
        """A longer text cannot fit, whatever it says."""
        return self.llm.max_model_len * self._longest_piece

    async def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of a prompt; a text that cannot fit is refused before it costs anything."""
        (ids,) = await self.encode_all([text], add_bos=add_bos)
        return ids

    async def encode_all(
        self, texts: Sequence[str], *, add_bos: bool | None = None
    ) -> list[list[int]]:
        """As `encode`, of several prompts."""
        for text in texts:
            if len(text) > self.max_characters:
                raise self._too_long(f"{len(text):,} characters")
        encode = self.llm.tokenizer.encode

        def work() -> list[list[int]]:
            return [encode(text, add_bos) for text in texts]

        return await self.beside(work, sum(map(len, texts)) > LONG_TEXT)

    async def beside(self, work: Callable[[], T], long: bool) -> T:
        """`work()`; if it is long, in a thread."""
        return await self.workers.run(work) if long else work()

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        size = self.llm.vocab_size
        for token in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= token < size:
                raise bad(f"{name}: {token} is no token id; they are 0 to {size - 1}", name)

    def max_tokens(self, ids: Sequence[int], wanted: int | None) -> int:
        """How many tokens may follow a prompt; None: as many as the checkpoint wants (its
        max_new_tokens), or else as there is room for.

        Raises:
            ApiError: prompt and wanted tokens do not fit together.
        """
        if not ids:
            raise conflict("the prompt is empty, and begins with no BOS", "prompt")
        room = self.llm.max_model_len - len(ids)
        if room < 1 or (wanted or 0) > room:
            asked = f"{len(ids):,} tokens, and {wanted or 1:,} are to follow"
            raise self._too_long(asked)
        if wanted is None:
            return min(room, self.config.sampling_defaults.get("max_tokens", room))
        return max(1, wanted)

    def _too_long(self, what: str) -> Exception:
        return bad(
            f"this model's maximum context length is {self.llm.max_model_len:,} tokens; "
            f"the prompt has {what}",
            "prompt",
            "context_length_exceeded",
        )

    def _check_copies(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> int:
        """Bytes that go to the engine: each choice takes its prompt, biases and grammar along."""
        with suppress(OverflowError):  # an integer of more than 64 bits, which is refused later
            more = len(msgspec.msgpack.encode(params))
            size = params.n * sum(len(ids) * TOKEN_BYTES + more for ids in prompts)
            if size > self.config.max_copied_bytes:
                raise conflict(
                    f"n: {params.n} choices of {len(prompts)} prompts, with their parameters, are "
                    f"{size:,} bytes for the engine; at most {self.config.max_copied_bytes:,} "
                    "may be: ask for fewer at a time",
                    "n",
                )
            return size
        return 0

    async def run(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        whole: bool = False,
        borders: Sequence[int] = (),
    ) -> AsyncGenerator[list[Delta], None]:
        """`params.n` completions of each prompt; job index = prompt number * n + completion.

        Yields as `AsyncLLM.batches` does. `borders` are positions in each prompt.
        """
        began = time.perf_counter()
        size = self._check_copies(prompts, params)

        def make() -> list[Job]:
            one = [params.completion(i) for i in range(params.n)]
            return [Job(ids, each, borders) for ids in prompts for each in one]

        jobs = await self.beside(make, size > LONG_IDS * TOKEN_BYTES)
        reasons: list[str] = []
        ending = "abort"  # of those that have no reason when this ends
        try:
            async with aclosing(self.llm.batches(jobs, whole=whole)) as batches:
                taken = False
                async for batch in batches:
                    if not taken:  # by the engine
                        self.metrics.prompt_tokens.inc(sum(map(len, prompts)))
                        taken = True
                    for delta in batch:
                        if delta.finish_reason is not None:
                            reasons.append(delta.finish_reason)
                            self.metrics.end_to_end.add(time.perf_counter() - began)
                    for start in range(0, len(batch), DELTAS):
                        if start:  # who is behind has thousands to catch up with
                            await asyncio.sleep(0)
                        yield batch[start : start + DELTAS]
        except Exception:
            ending = "error"
            raise
        finally:
            for reason in [*reasons, *[ending] * (len(jobs) - len(reasons))]:
                self.metrics.finished.labels(reason).inc()
