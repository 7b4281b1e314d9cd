"""`LLM`: prompts in, text out, many at a time.

Invariant: the engine is clean after every call, however it ended: a request lives no longer than
the `generate` or `stream` that made it, and what goes wrong in one call changes no other's text.
Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plamo_ref.engine.build import build_core
from plamo_ref.engine.callers import Caller, Callers
from plamo_ref.engine.completion import Completion, gather
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.outputs import RequestOutput, StreamPiece
from plamo_ref.engine.prompts import ParamsLike, Prompt, PromptsLike, read_params, read_prompts
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.source import checked_model, checked_source, open_source
from plamo_ref.grammar.pool import GuidePool
from plamo_ref.intake.hub import find
from plamo_ref.intake.vllm_names import CALL, MODEL, speaks_vllm
from plamo_ref.sampling import Guide, GuidedError, SamplingParams
from plamo_ref.text.loading import check_params, load_tokenizer


class LLM:
    """An engine with a model in it. It takes vLLM's keywords: see `plamo_ref.intake.vllm_names`.

    It may be interrupted at any moment and used again. Threads may share it, and take turns: a
    `generate` has the engine for itself from its beginning to its end, a `stream` for one step at a
    time; each text is what it would be if the calls came one after the other.

    Args:
        model: "tiny", a checkpoint folder, or a hub id. A folder without a tokenizer serves token
            ids: prompts are given as ids, and outputs have no text.
        revision, cache_dir, offline: for hub ids, see `plamo_ref.intake.hub.find`.
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
        source = open_source(folder, self.config.load_format, self.config.generation_config)
        self._folder = folder
        self.model_config = source.config
        self.tokenizer = load_tokenizer(folder, source.config.vocab_size)
        self.stop_token_ids = source.stop_token_ids
        self._sampling = source.sampling
        self.core, self.plan = build_core(source.config, self.config, source.load)
        self.records: list[StepRecord] = []  # filled only with record=True
        if self.config.record:
            self.core.observers.append(lambda record, *_: self.records.append(record))
        self._callers = Callers(self.core)
        self._completions = self._callers.completions  # of all calls under way, by request id
        self._count = 0

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without sampling parameters gets: the checkpoint's generation_config.json
        says it, as far as it does (see `EngineConfig.generation_config`)."""
        return SamplingParams(**self._sampling)

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
            Exception: what one of its requests ended with, or the step that it was waiting for.
        """
        caller = Caller()
        try:
            return self._callers.alone(
                lambda: self._generate(caller, prompts, sampling_params, use_tqdm)
            )
        finally:
            self._callers.leaving.append(caller)
            self._callers.grant()

    def _generate(
        self,
        caller: Caller,
        prompts: PromptsLike | None,
        sampling_params: ParamsLike,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        self._submit(caller, prompts, sampling_params)
        completions = caller.completions
        with tqdm(total=len(completions), desc="requests", disable=not use_tqdm) as bar:
            while unfinished := sum(not c.finished for c in completions):
                bar.update(len(completions) - unfinished - bar.n)
                self._callers.step()
                if caller.error is not None:
                    raise caller.error
            bar.update(len(completions) - bar.n)
        return [gather(group, self.tokenizer) for group in caller.groups]

    @speaks_vllm(CALL, EngineError)
    def stream(
        self, prompts: PromptsLike | None = None, sampling_params: ParamsLike = None
    ) -> Iterator[StreamPiece]:
        """Yield every token as it comes, of all prompts together.

        A completion's pieces, joined, are its text. Leaving the loop aborts what still runs.

        Raises: as `generate`; what comes while it runs, it raises in the loop.
        """
        caller = Caller()
        try:
            self._callers.alone(lambda: self._submit(caller, prompts, sampling_params))
            pieces = self._pieces(caller)
            next(pieces)  # into its `try`: a stream that is dropped unread must clean up as well
        except BaseException:
            self._callers.leaving.append(caller)
            self._callers.grant()
            raise
        return pieces

    def abort(self, request_id: str) -> None:
        """End a request (all its completions) at any moment; what it has so far is its result."""
        for name in list(self._completions):
            if name == request_id or name.partition(".")[0] == request_id:
                self._callers.aborted.append(name)
        self._callers.grant()

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
        self, caller: Caller, prompts: PromptsLike | None, sampling_params: ParamsLike
    ) -> None:
        """Queue all prompts for somebody; if one is refused, he leaves, and so do the others."""
        listed = read_prompts(prompts)
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        wanted = read_params(sampling_params, len(listed))
        for index, (prompt, params) in enumerate(zip(listed, wanted, strict=True)):
            self._submit_one(caller, prompt, index, params)

    def _submit_one(
        self, caller: Caller, prompt: Prompt, index: int, params: SamplingParams
    ) -> None:
        """Queue the completions of one prompt."""
        check_params(self.tokenizer, params)
        text, ids = prompt.text, prompt.token_ids
        if ids is None:
            ids = tuple(self.tokenizer.encode(text or ""))
        base, self._count = str(self._count), self._count + 1
        group: list[Completion] = []
        caller.groups.append(group)
        for number in range(params.n):
            one = params.completion(number)
            guide = self._guide(one)
            name = base if params.n == 1 else f"{base}.{number}"
            caller.names.append(name)  # before it is there: so that none is ever overlooked
            try:
                request = self.core.add(ids, one, self.stop_token_ids, name, guide)
            except BaseException:
                if guide is not None:
                    guide.close()
                raise
            group.append(Completion(request, index, number, text, self.tokenizer))
            self._callers.add(caller, group[-1])

    def _pieces(self, caller: Caller) -> Iterator[StreamPiece]:
        try:
            yield StreamPiece("", 0, 0, None, "", None)  # taken by `stream`
            while self._callers.alone(lambda: self._callers.advance(caller)):
                for completion in caller.completions:
                    yield from completion.unread()
            if caller.error is not None:
                raise caller.error
        finally:
            self._callers.leaving.append(caller)
            self._callers.grant()
