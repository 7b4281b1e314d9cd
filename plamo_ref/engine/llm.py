"""`LLM`: prompts in, text out, many at a time.

Invariant: the engine is clean after every call, however it ended: a request lives no longer than
the `generate` or `stream` that made it. Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plamo_ref.compat import CALL, MODEL, speaks_vllm
from plamo_ref.engine.build import build_core
from plamo_ref.engine.completion import Completion, gather
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.outputs import RequestOutput, StreamPiece
from plamo_ref.engine.prompts import ParamsLike, Prompt, PromptsLike, read_params, read_prompts
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.source import checked_model, checked_source, open_source
from plamo_ref.grammar.pool import GuidePool
from plamo_ref.hub import find
from plamo_ref.sampling import Guide, GuidedError, SamplingParams
from plamo_ref.text_stream import TextStream
from plamo_ref.tokenizer import Plamo2Tokenizer


class LLM:
    """An engine with a model in it. It takes vLLM's keywords: see `plamo_ref.compat`.

    Args:
        model: "tiny", a checkpoint folder, or a hub id.
        revision, cache_dir, offline: for hub ids, see `plamo_ref.hub.find`.
        engine: fields of `EngineConfig`.

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
        **engine: Any,
    ) -> None:
        self.config = EngineConfig(**engine)
        where = checked_source(revision=revision, cache_dir=cache_dir, offline=offline)
        folder = find(checked_model(model), **where)
        source = open_source(folder, self.config.load_format)
        self._folder = folder
        self.model_config = source.config
        self.tokenizer = Plamo2Tokenizer.from_folder(folder)
        self.stop_token_ids = source.stop_token_ids
        self.core, self.plan = build_core(source.config, self.config, source.load)
        self.records: list[StepRecord] = []  # filled only with record=True
        if self.config.record:
            self.core.observers.append(lambda record, *_: self.records.append(record))
        self._completions: dict[str, Completion] = {}  # of all calls under way, by request id
        self._count = 0

    # --- the two ways to call it ---------------------------------------------------------------

    @speaks_vllm(CALL, EngineError)
    def generate(
        self,
        prompts: PromptsLike | None = None,
        sampling_params: ParamsLike = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete all prompts together; results are in the order of the prompts.

        A grammar that leads nowhere ends its completion alone: the finish reason is "error", and
        the output's `error` says why.

        Args:
            prompts: one or many: a text, token ids (a flat list or a 1-D array is one prompt), or
                vLLM's `{"prompt": text}` and `{"prompt_token_ids": ids}`.
            sampling_params: one for all, one for each, or None: the defaults.

        Raises:
            PlamoRefError: a prompt or a grammar is impossible; nothing was started.
        """
        groups = self._submit(prompts, sampling_params)
        completions = [c for group in groups for c in group]
        try:
            with tqdm(total=len(completions), desc="requests", disable=not use_tqdm) as bar:
                while unfinished := sum(not c.finished for c in completions):
                    bar.update(len(completions) - unfinished - bar.n)
                    self._step()
                bar.update(len(completions) - bar.n)
            return [gather(group, self.tokenizer) for group in groups]
        finally:
            self._close(completions)

    @speaks_vllm(CALL, EngineError)
    def stream(
        self, prompts: PromptsLike | None = None, sampling_params: ParamsLike = None
    ) -> Iterator[StreamPiece]:
        """Yield every token as it comes, of all prompts together.

        A completion's pieces, joined, are its text. Leaving the loop aborts what still runs.
        """
        groups = self._submit(prompts, sampling_params)
        pieces = self._pieces([c for group in groups for c in group])
        next(pieces)  # into its `try`: a stream that is dropped unread must clean up as well
        return pieces

    def abort(self, request_id: str) -> None:
        """End a request (all its completions) at any moment; what it has so far is its result."""
        for name, completion in list(self._completions.items()):
            mine = name == request_id or name.partition(".")[0] == request_id
            if mine and not completion.finished:
                self.core.finish(name, "abort")
                completion.end()

    # --- inside --------------------------------------------------------------------------------

    @cached_property
    def _guides(self) -> GuidePool:
        return GuidePool(self._folder, self.model_config.vocab_size, self.stop_token_ids)

    def _guide(self, params: SamplingParams) -> Guide | None:
        """The guide of a request, its grammar compiled.

        Raises:
            GuidedError: the grammar cannot be enforced.
        """
        if params.guided is None:
            return None
        guide = self._guides.start(params.guided)
        try:
            if guide.error is not None:  # waits until it is known
                raise GuidedError(guide.error)
        except BaseException:
            guide.close()
            raise
        return guide

    def _submit(
        self, prompts: PromptsLike | None, sampling_params: ParamsLike
    ) -> list[list[Completion]]:
        """Queue all prompts, or none. Returns the completions of each prompt."""
        listed = read_prompts(prompts)
        wanted = read_params(sampling_params, len(listed))
        groups: list[list[Completion]] = []
        try:
            for index, (prompt, params) in enumerate(zip(listed, wanted, strict=True)):
                groups.append([])
                self._submit_one(prompt, index, params, groups[-1])
        except Exception:
            self._close([c for group in groups for c in group])
            raise
        return groups

    def _submit_one(
        self, prompt: Prompt, index: int, params: SamplingParams, group: list[Completion]
    ) -> None:
        """Queue the completions of one prompt, adding them to `group` one by one."""
        text, ids = prompt.text, prompt.token_ids
        if ids is None:
            ids = tuple(self.tokenizer.encode(text or ""))
        base, self._count = str(self._count), self._count + 1
        for number in range(params.n):
            one = params.completion(number)
            guide = self._guide(one)
            name = base if params.n == 1 else f"{base}.{number}"
            try:
                request = self.core.add(ids, one, self.stop_token_ids, name, guide)
            except BaseException:
                if guide is not None:
                    guide.close()
                raise
            stream = TextStream(self.tokenizer, one)
            group.append(Completion(request, index, number, text, stream))
            self._completions[name] = group[-1]

    def _pieces(self, completions: Sequence[Completion]) -> Iterator[StreamPiece]:
        try:
            yield StreamPiece("", 0, 0, None, "", None)  # taken by `stream`
            while any(c.pieces or not c.finished for c in completions):
                if not any(c.pieces for c in completions):
                    self._step()
                for completion in completions:
                    while completion.pieces:
                        yield completion.pieces.popleft()
        finally:
            self._close(completions)

    def _step(self) -> None:
        """One engine step; its tokens become text."""
        for request in self.core.step():
            if self._completions[request.request_id].take_token():
                self.core.finish(request.request_id, "stop")

    def _close(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.core.finish(completion.request.request_id, "abort")
            self._completions.pop(completion.request.request_id, None)
