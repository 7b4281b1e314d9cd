"""`LLM`: prompts in, text out, many at a time.

Invariant: the engine is clean after every call, however it ended: a request lives no longer than
the `generate` or `stream` that made it, and what goes wrong in one call changes no other's text.
Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from plamo_ref.engine.build import build_core, open_replicas
from plamo_ref.engine.callers import Caller, Callers
from plamo_ref.engine.completion import Completion, gather
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.hidden import hidden_states
from plamo_ref.engine.outputs import RequestOutput, StreamPiece
from plamo_ref.engine.pauses import collect_all, set_aside_for
from plamo_ref.engine.prompts import Asked, completions_asked
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.source import open_source
from plamo_ref.grammar.guided import check
from plamo_ref.grammar.pool import GuidePool
from plamo_ref.intake.hub import find_checked
from plamo_ref.intake.prompts import ParamsLike, PromptsLike, read_params
from plamo_ref.intake.vllm_names import CALL, MODEL, speaks_vllm
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.loading import load_tokenizer

if TYPE_CHECKING:
    from plamo_ref.chat.conversations import ChatPrompts, Conversation


class LLM:
    """An engine with a model in it. It takes vLLM's keywords: see `plamo_ref.intake.vllm_names`.

    It may be interrupted at any moment and used again. Threads may share it, and take turns: a
    `generate` has the engine for itself from its beginning to its end, a `stream` for one step at a
    time; each text is what it would be if the calls came one after the other.

    Args:
        model: "tiny", a checkpoint folder, or a hub id. A folder without a tokenizer serves token
            ids: prompts are given as ids, and outputs have no text.
        revision, cache_dir, offline: for hub ids, see `plamo_ref.intake.hub.find`.
        config: all settings of the engine as one object, in place of `engine`.
        engine: fields of `EngineConfig`.

    Use it in `with`, or `close` it, to have its memory back while the program goes on.

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
        config: EngineConfig | None = None,
        **engine: Any,
    ) -> None:
        self.config = EngineConfig.of(config, engine)
        where = {"revision": revision, "cache_dir": cache_dir, "offline": offline}
        self._folder = folder = find_checked(EngineError, model=model, **where)
        source = open_source(folder, *self.config.source)
        self.model_config = source.config
        self.tokenizer = load_tokenizer(folder, source.config.vocab_size)
        self.stop_token_ids = source.stop_token_ids
        self._sampling = source.sampling
        self.records: list[StepRecord] = []  # filled only with record=True
        self._count = 0
        self._chats: dict[str | None, ChatPrompts] = {}  # by the name of the template
        self._open: Callers | None = None
        self._replicas = open_replicas(type(self), folder, self.config)
        if self._replicas is None:
            core, self.plan = build_core(source.config, self.config, source.load)
            if self.config.record is True:
                core.observers.append(lambda record, *_, keep=self.records.append: keep(record))
            self._open = Callers(core)
            set_aside_for(self, thorough=core.runner.device.type == "cuda")

    @property
    def _callers(self) -> Callers:
        if self._replicas is not None:
            raise EngineError("an LLM over replicas has generate and chat; make one without them")
        if self._open is None:
            raise EngineError("this LLM is closed: make another one")
        return self._open

    @property
    def core(self) -> EngineCore:
        """The engine's heart, for observers, audits and lessons."""
        return self._callers.core

    def close(self) -> None:
        """End what runs, and give weights and caches back to the device (not what is held
        elsewhere, such as `core`). It may be called again."""
        if self._replicas is not None:
            self._replicas.close()
        callers, self._open = self._open, None
        if callers is None:
            return
        callers.end_all()
        callers.core.runner.close()
        self.__dict__.pop("_guides", None)  # its processes end with it
        del callers
        collect_all()  # models and graphs know each other in circles
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without sampling parameters gets (`EngineConfig.generation_config`)."""
        return SamplingParams(**self._sampling)

    @speaks_vllm(CALL, EngineError)
    def generate(
        self,
        prompts: PromptsLike | None = None,
        sampling_params: ParamsLike = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete all prompts together; results are in the order of the prompts.

        A grammar that leads nowhere ends its completion alone, and so does a logits processor that
        returns none: the finish reason is "error", and the output's `error` says why.

        Args:
            prompts: one or many: a text, token ids (a flat list or a 1-D array is one prompt), or
                vLLM's `{"prompt": text}` and `{"prompt_token_ids": ids}`, with a `"cache_salt"` or
                without.
            sampling_params: one for all, one for each, or None: the defaults.

        Raises:
            PlamoRefError: a prompt or a grammar is impossible; nothing was started.
            Exception: what one of its requests ended with, or the step that it was waiting for.
        """
        if self._replicas is not None:
            return self._replicas.generate(self._asked(prompts, sampling_params), use_tqdm)
        caller, callers = Caller(), self._callers

        def work() -> list[RequestOutput]:
            self._submit(caller, prompts, sampling_params)
            return self._outputs(caller, use_tqdm)

        try:
            return callers.alone(work)
        finally:
            callers.leaving.append(caller)
            callers.grant()

    def _outputs(self, caller: Caller, use_tqdm: bool) -> list[RequestOutput]:
        """Make steps until the caller has everything."""
        completions = unfinished = caller.completions
        with tqdm(total=len(completions), desc="requests", disable=not use_tqdm) as bar:
            while unfinished := [c for c in unfinished if c.request.finish_reason is None]:
                bar.update(len(completions) - len(unfinished) - bar.n)
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
        caller, callers = Caller(streams=True), self._callers
        try:
            callers.alone(lambda: self._submit(caller, prompts, sampling_params))
            pieces = self._pieces(caller, callers)
            next(pieces)  # into its `try`: a stream that is dropped unread must clean up as well
        except BaseException:
            callers.leaving.append(caller)
            callers.grant()
            raise
        return pieces

    def chat(
        self,
        messages: "Conversation | Sequence[Conversation]",
        sampling_params: ParamsLike = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or many together; each is a list of `{"role": …, "content": …}`.

        Args:
            chat_template: "plain", "translate", a template that the checkpoint has by this name, or
                a Jinja file; None: the checkpoint's own.
            chat_template_kwargs: further names that the template asks for.

        Raises:
            PlamoRefError: as `generate`; or there is no template, or it refuses the messages.
        """
        from plamo_ref.chat.conversations import ChatPrompts, read_conversations

        if chat_template not in self._chats:
            made = ChatPrompts.of(self._folder, chat_template, self.tokenizer)
            self._chats[chat_template] = made
        chats, extra = self._chats[chat_template], dict(chat_template_kwargs or {})
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
        prompts = [chats.prompt(one, extra, **options) for one in read_conversations(messages)]
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        params = [chats.params(each) for each in read_params(sampling_params, len(prompts))]
        return self.generate(prompts, params, use_tqdm)

    def hidden_states(self, prompts: PromptsLike) -> list[Tensor]:
        """What the last norm gives for the tokens of each prompt: [tokens, hidden_size], on the
        CPU, in float32 or more. A prompt needs room for one token more.

        Raises: as `generate`.
        """
        return self._callers.alone(lambda: hidden_states(self.core, self.generate, prompts))

    def abort(self, request_id: str) -> None:
        """End a request (all its completions) at any moment; what it has so far is its result."""
        for name in list(self._callers.completions):
            if name == request_id or name.partition(".")[0] == request_id:
                self._callers.aborted.append(name)
        self._callers.grant()

    def reset_prefix_cache(self) -> bool:
        """Forget what was computed for those who have ended. Always works, so it returns True."""
        self._callers.alone(self.core.reset_prefix_cache)
        return True

    @cached_property
    def _guides(self) -> GuidePool:
        return GuidePool(self._folder, self.model_config.vocab_size, self.stop_token_ids)

    def _asked(self, prompts: Any, sampling_params: Any) -> Iterator[Asked]:
        default = self.get_default_sampling_params()
        return completions_asked(prompts, sampling_params, self.tokenizer, default)

    def _submit(
        self, caller: Caller, prompts: PromptsLike | None, sampling_params: ParamsLike
    ) -> None:
        """Queue all prompts for somebody; if one is refused, he leaves, and so do the others."""
        base = ""
        for asked in self._asked(prompts, sampling_params):
            if asked.number == 0:
                base, self._count = str(self._count), self._count + 1
                caller.groups.append([])
            self._submit_one(caller, asked, base if asked.count == 1 else f"{base}.{asked.number}")

    def _submit_one(self, caller: Caller, asked: Asked, name: str) -> None:
        params = asked.params
        guide = None if params.guided is None else self._guides.start(params.guided)
        if guide is not None:
            check(guide)
        caller.names.append(name)  # before it is there: so that none is ever overlooked
        try:
            request = self.core.add(
                asked.prompt_ids, params, self.stop_token_ids, name, guide, asked.borders
            )
        except BaseException:
            if guide is not None:
                guide.close()
            raise
        completion = Completion(request, asked, self.tokenizer, caller.streams)
        caller.groups[-1].append(completion)
        self._callers.add(caller, completion)

    def _pieces(self, caller: Caller, callers: Callers) -> Iterator[StreamPiece]:
        try:
            yield StreamPiece("", 0, 0, None, "", None)  # taken by `stream`
            while callers.alone(lambda: callers.advance(caller)):
                for completion in caller.completions:
                    yield from completion.unread()
            if caller.error is not None:
                raise caller.error
        finally:
            callers.leaving.append(caller)
            callers.grant()
