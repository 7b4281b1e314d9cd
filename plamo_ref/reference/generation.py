"""Generate with the reference: one token after the other, with or without the cache.

Invariant: the cached loop and the one that recomputes everything give the same ids.
Built in notebooks/04_reference_generation.ipynb.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from plamo_ref.errors import PlamoRefError
from plamo_ref.reference.model import Plamo2Reference, SequenceState
from plamo_ref.sampling import Guide, SamplingParams, uniform
from plamo_ref.sampling.adjust import RowContext, adjust
from plamo_ref.sampling.sampler import sample
from plamo_ref.text.stream import TextStream
from plamo_ref.text.tokenizer import Plamo2Tokenizer


class PromptError(PlamoRefError, ValueError):
    """A prompt that the model cannot take."""


@dataclass(frozen=True)
class Piece:
    """One generated token, the text it made certain and, in the last piece, why it is the last."""

    token_id: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None


def generate_ids(
    model: Plamo2Reference,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    stop_ids: Collection[int] = (),
    *,
    cached: bool = True,
    guide: Guide | None = None,
) -> Iterator[int]:
    """Token ids after `prompt_ids`, one by one, up to `max_tokens` or a stop token (included).

    With `max_tokens=None` they go on to the longest text that the model is made for.

    `cached=False` feeds the whole sequence again for every token: slow, and obviously right.

    Raises:
        PromptError: the prompt is empty or has an id outside the vocabulary.
    """
    _check_prompt(prompt_ids, model.config.vocab_size)
    device = next(model.parameters()).device
    seed = params.seed or 0
    state: SequenceState | None = None
    ids = list(prompt_ids)
    fed = 0
    most = params.max_tokens
    room = model.config.max_position_embeddings - len(ids)
    for index in range(room if most is None else most):
        with torch.inference_mode():  # inside the loop: a generator must not leave it switched on
            output = model.run(torch.tensor(ids[fed:], device=device), state)
            context = RowContext(params, prompt_ids, ids[len(prompt_ids) :], stop_ids, guide)
            logits = adjust(output.logits[-1:], [context])
            token = int(sample(logits, [params], [uniform(seed, index)])[0])
        if cached:
            state, fed = output.state, len(ids)
        ids.append(token)
        yield token
        if guide is not None:
            guide.accept(token)
        if token in stop_ids or (guide is not None and guide.finished):
            return


def generate_text(
    model: Plamo2Reference,
    tokenizer: Plamo2Tokenizer,
    prompt: str | Sequence[int],
    params: SamplingParams,
    stop_ids: Collection[int] = (),
) -> Iterator[Piece]:
    """Stream the continuation of a text or of token ids; the last piece has the finish reason."""
    prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(stop_ids))
    stream = TextStream(tokenizer, params)
    for count, token in enumerate(generate_ids(model, prompt_ids, params, stops), start=1):
        ended = token in stops
        text = stream.push_stop(token) if ended else stream.push(token)
        if ended or stream.stopped_by is not None:
            yield Piece(token, text + stream.finish(), "stop")
            return
        if count == params.max_tokens:
            text += stream.finish()
            yield Piece(token, text, "length" if stream.stopped_by is None else "stop")
            return
        yield Piece(token, text)


def _check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    if not prompt_ids:
        raise PromptError("the prompt has no tokens: give some text, or start with BOS")
    for place, token in enumerate(prompt_ids):
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"prompt token {place} is {token}; the vocabulary has ids 0 to {vocab_size - 1}"
            )
