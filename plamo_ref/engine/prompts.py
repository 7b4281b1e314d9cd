"""What a call asks for: its prompts and parameters, one completion after the other.

Invariant: every prompt gives `n` completions, in its place; each has parameters of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from plamo_ref.intake.prompts import read_params, read_prompts
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.loading import check_params
from plamo_ref.text.tokenizer import Plamo2Tokenizer


@dataclass(frozen=True)
class Asked:
    """One completion that a call asks for."""

    prompt_index: int  # in the call
    number: int  # of the completion, 0 to n - 1
    count: int  # n
    prompt: str | None  # None: given as token ids
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    borders: tuple[int, ...] = ()  # see `Prompt`


def completions_asked(
    prompts: Any, params: Any, tokenizer: Plamo2Tokenizer, default: SamplingParams
) -> Iterator[Asked]:
    """What a call asks for, prompt by prompt: `n` completions of each.

    Raises:
        PromptError, SamplingError: something in it is no prompt, or no parameters.
    """
    listed = read_prompts(prompts)
    wanted = read_params(default if params is None else params, len(listed))
    for index, (prompt, one) in enumerate(zip(listed, wanted, strict=True)):
        check_params(tokenizer, one)
        if prompt.cache_salt is not None:
            one = replace(one, cache_salt=prompt.cache_salt)
        ids = prompt.token_ids
        if ids is None:
            ids = tuple(tokenizer.encode(prompt.text or ""))
        for number in range(one.n):
            of_one = one.completion(number)
            yield Asked(index, number, one.n, prompt.text, ids, of_one, prompt.borders)
