"""What all routes share: prompts to ids, limits, and jobs run with their times taken.

Invariant: whatever reaches the engine is within the limits, and every `run` that begins is counted
as finished once: with a reason, as an error, or as aborted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property

from plamo_ref.engine.async_llm import AsyncLLM
from plamo_ref.engine.calls import Delta, Job
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.errors import bad, conflict
from plamo_ref.server.metrics import Metrics
from plamo_ref.server.templates import ChatTemplate

LONG_TEXT = 4096  # characters that would keep the event loop too long


class Service:
    """A model, its limits, its template and its numbers."""

    def __init__(
        self, llm: AsyncLLM, config: ServerConfig, template: ChatTemplate | None = None
    ) -> None:
        self.llm, self.template = llm, template
        self.config = replace(config, sampling_defaults=llm.sampling_defaults)
        self.metrics = Metrics(llm)
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
        if len(text) > self.max_characters:
            raise self._too_long(f"{len(text):,} characters")
        if len(text) <= LONG_TEXT:
            return self.llm.tokenizer.encode(text, add_bos)
        return await asyncio.to_thread(self.llm.tokenizer.encode, text, add_bos)

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        size = self.llm.vocab_size
        for token in ids:
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

    async def run(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, whole: bool = False
    ) -> AsyncGenerator[list[Delta], None]:
        """`params.n` completions of each prompt; job index = prompt number * n + completion.

        Yields as `AsyncLLM.batches` does.
        """
        jobs = [Job(ids, params.completion(i)) for ids in prompts for i in range(params.n)]
        began = time.perf_counter()
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
                    yield batch
        except Exception:
            ending = "error"
            raise
        finally:
            for reason in [*reasons, *[ending] * (len(jobs) - len(reasons))]:
                self.metrics.finished.labels(reason).inc()
