"""What a user may give as prompts, and the parameters that go with each.

Invariant: every prompt that is given is returned, once and in its place, as a text or as ids that
are Python's own integers; whatever else is given is refused by name and place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, cast

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.values import plain, shown, whole
from plamo_ref.sampling import SamplingParams

# A text, ids, or vLLM's {"prompt": text} and {"prompt_token_ids": ids}, which may have a
# "cache_salt", and "borders". Arrays of NumPy and torch are lists of their items everywhere.
PromptLike = str | Iterable[int] | Mapping[str, Any]
PromptsLike = PromptLike | Iterable[PromptLike]
ParamsLike = SamplingParams | Iterable[SamplingParams] | None

_KEYS = ("prompt", "prompt_token_ids", "cache_salt", "borders")
_WANTED = "a text, a list of ids, or a list of such"


class PromptError(PlamoRefError, ValueError):
    """Something that is no prompt, or does not go with it; the message says what and where."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: its text, its ids, or both; then the ids are what counts."""

    text: str | None
    token_ids: tuple[int, ...] | None
    cache_salt: str | None = None  # instead of that of its SamplingParams
    borders: tuple[int, ...] = ()  # positions in the ids behind which others may go another way


def read_prompts(given: Any) -> list[Prompt]:
    """One prompt or many → many. A flat list of ids is one prompt; a generator is read to its end.

    Raises:
        PromptError: something in it is no prompt.
    """
    if isinstance(given, (str, Mapping)):
        return [read_prompt(given)]
    items = _items(given, "prompts")
    if items and all(isinstance(item, (int, float)) for item in items):
        return [read_prompt(items)]
    return [read_prompt(item, f"prompt {place}") for place, item in enumerate(items)]


def read_prompt(given: Any, name: str = "the prompt") -> Prompt:
    """One prompt; `name` is what errors call it.

    Raises:
        PromptError: it is none.
    """
    if isinstance(given, str):
        return Prompt(str(given), None)
    if isinstance(given, Mapping):
        return _from_mapping(given, name)
    return Prompt(None, read_ids(given, name))


def read_ids(given: Any, name: str = "the prompt") -> tuple[int, ...]:
    """Token ids. Whether the vocabulary has them is for the engine to say.

    Raises:
        PromptError: there is something else among them.
    """
    items = _items(given, name)
    if set(map(type, items)) <= {int}:  # at once: prompts are long, and there can be many
        return tuple(items)
    ids = []
    for place, item in enumerate(items):
        try:
            ids.append(whole(item))
        except TypeError:
            message = f"{name}: token {place} is {shown(item)}; ids are integers"
            raise PromptError(message) from None
    return tuple(ids)


def known_ids(
    error: type[PlamoRefError], token_ids: Iterable[object], vocab_size: int, what: str
) -> tuple[int, ...]:
    """The ids as plain integers.

    Args:
        what: how a message begins, {place} in it.

    Raises:
        PlamoRefError: of class `error`: they are no integers of the vocabulary.
    """
    try:
        tokens = tuple(token_ids)
    except TypeError:
        raise error(f"{what.format(place=0)} {shown(token_ids)}; expected token ids") from None
    if set(map(type, tokens)) == {int}:  # at once, as above
        plain = cast(tuple[int, ...], tokens)
        if min(plain) >= 0 and max(plain) < vocab_size:
            return plain
    known: list[int] = []
    for place, token in enumerate(tokens):
        try:
            number = None if isinstance(token, bool) else index(token)  # type: ignore[arg-type]
        except TypeError:
            number = None
        if number is None or not 0 <= number < vocab_size:
            raise error(
                f"{what.format(place=place)} {shown(token)}; "
                f"the vocabulary has ids 0 to {vocab_size - 1}"
            )
        known.append(number)
    return tuple(known)


def read_params(given: Any, count: int) -> list[SamplingParams]:
    """Sampling parameters for `count` prompts: one for all, one for each, or None: the defaults.

    Raises:
        PromptError: these are others, or not so many.
    """
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    if isinstance(given, Mapping):
        raise PromptError(f"sampling_params is {shown(given)}: write SamplingParams(**these)")
    items = _items(given, "sampling_params", "one SamplingParams, or one for each prompt")
    for item in items:
        if not isinstance(item, SamplingParams):
            raise PromptError(f"sampling_params: {shown(item)} is no SamplingParams")
    if len(items) != count:
        raise PromptError(
            f"{count} prompts but {len(items)} sampling parameters: "
            "give one for all, or one for each"
        )
    return items


def _items(given: Any, name: str, wanted: str = _WANTED) -> list[Any]:
    """The items of a list, an array or an iterator, scalars among them as Python's own."""
    if isinstance(given, (set, frozenset)):
        raise PromptError(f"{name}: {shown(given)} has no order; make it a list")
    if isinstance(given, (bytes, bytearray, memoryview)):
        raise PromptError(f"{name}: {shown(given)} is bytes; decode them to a text")
    try:
        if hasattr(given, "shape") and hasattr(given, "tolist"):
            given = given.tolist()  # of NumPy or torch: rows become lists, scalars Python's own
        if isinstance(given, (str, Mapping)):
            raise TypeError("no list")
        items = iter(given)
    except (TypeError, RuntimeError):  # also a tensor that has a shape and no data
        raise PromptError(f"{name}: {shown(given)} is of no use; give {wanted}") from None
    return [plain(item) for item in items]


def _from_mapping(given: Mapping[Any, Any], name: str) -> Prompt:
    """vLLM's {"prompt": text} and {"prompt_token_ids": ids}."""
    for key, value in given.items():
        empty = value is None or (isinstance(value, Sequence | Mapping) and not value)
        if key not in _KEYS and not empty:
            raise PromptError(f"{name}: {shown(key)} is not supported; it is about text only")
    text, ids = given.get("prompt"), given.get("prompt_token_ids")
    if text is None and ids is None:
        raise PromptError(f'{name}: {shown(given)} has neither "prompt" nor "prompt_token_ids"')
    if text is not None and not isinstance(text, str):
        raise PromptError(f"{name}: its text is {shown(text)}")
    ids = None if ids is None else read_ids(ids, f"{name}: prompt_token_ids")
    salt = given.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and salt):
        raise PromptError(f"{name}: its cache_salt is {shown(salt)}; give a text, not an empty one")
    borders = read_ids(given.get("borders") or (), f"{name}: borders")
    return Prompt(None if text is None else str(text), ids, salt, borders)
