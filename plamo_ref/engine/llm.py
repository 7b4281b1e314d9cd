"""`LLM`: prompts in, text out, many at a time.

Invariant: the engine is clean after every call, however it ended: a request lives no longer than
the `generate` or `stream` that made it. Built in notebooks/07_continuous_batching.ipynb.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from plamo_ref.checkpoint import Checkpoint
from plamo_ref.engine.build import build_core
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.outputs import CompletionOutput, RequestOutput, StreamPiece
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.hub import find
from plamo_ref.loading import load_model
from plamo_ref.sampling import SamplingParams
from plamo_ref.text_stream import TextStream
from plamo_ref.tokenizer import Plamo2Tokenizer

Prompt = str | Sequence[int]


@dataclass
class _Live:
    """A request on its way, seen from outside the core."""

    request: Request
    index: int
    prompt: str | None
    text: TextStream
    pieces: deque[StreamPiece] = field(default_factory=deque)

    def output(self) -> RequestOutput:
        request, reason = self.request, self.text.stopped_by
        last = request.output_ids[-1] if request.output_ids else None
        stopped = request.finish_reason == "stop"
        completion = CompletionOutput(
            index=0,
            text=self.text.text,
            token_ids=tuple(request.output_ids),
            finish_reason=request.finish_reason,
            stop_reason=reason if reason is not None else (last if stopped else None),
        )
        return RequestOutput(
            request_id=request.request_id,
            prompt=self.prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=(completion,),
            finished=request.status == "finished",
            metrics=replace(request.times),
        )


class LLM:
    """An engine with a model in it.

    Args:
        model: "tiny", a checkpoint folder, or a hub id.
        revision, cache_dir, offline: for hub ids, see `plamo_ref.hub.find`.
        engine: fields of `EngineConfig`.

    Raises:
        PlamoRefError: the model or a setting cannot be used; the message says what to change.
    """

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        offline: bool = False,
        **engine: Any,
    ) -> None:
        try:
            self.config = EngineConfig(**engine)
        except TypeError as error:
            raise EngineError(f"LLM: {error}") from None
        folder = find(model, revision=revision, cache_dir=cache_dir, offline=offline)
        checkpoint = Checkpoint.open(folder)
        self.model_config = checkpoint.config
        self.tokenizer = Plamo2Tokenizer.from_folder(folder)
        self.stop_token_ids: Collection[int] = checkpoint.stop_token_ids
        self.core, self.plan = build_core(
            checkpoint.config,
            self.config,
            lambda ops, dtype, device: load_model(checkpoint, ops, dtype=dtype, device=device),
        )
        self.records: list[StepRecord] = []  # filled only with record=True
        if self.config.record:
            self.core.observers.append(lambda record, *_: self.records.append(record))
        self._live: dict[str, _Live] = {}

    # --- the two ways to call it ---------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete all prompts together; results are in the order of the prompts.

        Raises:
            EngineError: a prompt can never run; nothing was started.
        """
        live = self._submit(prompts, sampling_params)
        try:
            with tqdm(total=len(live), desc="requests", disable=not use_tqdm) as bar:
                while open_ := sum(r.request.status != "finished" for r in live):
                    bar.update(len(live) - open_ - bar.n)
                    self._step()
                bar.update(len(live) - bar.n)
            return [r.output() for r in live]
        finally:
            self._close(live)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[StreamPiece]:
        """Yield every token as it comes, of all prompts together.

        A request's pieces, joined, are its text. Leaving the loop aborts what still runs.
        """
        live = self._submit(prompts, sampling_params)
        return self._pieces(live)

    def abort(self, request_id: str) -> None:
        """End a request at any moment; what it has so far is its result."""
        live = self._live.get(request_id)
        if live is not None and live.request.status != "finished":
            self.core.finish(request_id, "abort")
            self._add_piece(live, None, live.text.finish())

    # --- inside --------------------------------------------------------------------------------

    def _submit(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[_Live]:
        """Queue all prompts, or none."""
        listed = _as_list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params or SamplingParams()] * len(listed)
        if len(sampling_params) != len(listed):
            raise EngineError(
                f"{len(listed)} prompts but {len(sampling_params)} sampling parameters: "
                "give one for all, or one for each"
            )
        live: list[_Live] = []
        try:
            for index, (prompt, params) in enumerate(zip(listed, sampling_params, strict=True)):
                text = prompt if isinstance(prompt, str) else None
                ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
                request = self.core.add(ids, params, self.stop_token_ids)
                live.append(_Live(request, index, text, TextStream(self.tokenizer, params)))
        except Exception:
            self._close(live)
            raise
        self._live |= {r.request.request_id: r for r in live}
        return live

    def _pieces(self, live: list[_Live]) -> Iterator[StreamPiece]:
        try:
            while any(r.pieces or r.request.status != "finished" for r in live):
                if not any(r.pieces for r in live):
                    self._step()
                for r in live:
                    while r.pieces:
                        yield r.pieces.popleft()
        finally:
            self._close(live)

    def _step(self) -> None:
        """One engine step; its tokens become text."""
        for request in self.core.step():
            live, token = self._live[request.request_id], request.output_ids[-1]
            ended_by_token = request.finish_reason == "stop"
            text = "" if ended_by_token else live.text.push(token)
            if live.text.stopped_by is not None and request.status != "finished":
                self.core.finish(request.request_id, "stop")
            if live.text.stopped_by is not None:
                request.finish_reason = "stop"  # a stop string in the last token allowed
            if request.status == "finished":
                text += live.text.finish()
            self._add_piece(live, token, text)

    def _add_piece(self, live: _Live, token: int | None, text: str) -> None:
        reason: FinishReason | None = live.request.finish_reason
        live.pieces.append(StreamPiece(live.request.request_id, live.index, token, text, reason))

    def _close(self, live: Sequence[_Live]) -> None:
        for r in live:
            self.core.finish(r.request.request_id, "abort")
            self._live.pop(r.request.request_id, None)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many → many. A flat list of integers is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
