"""A function of ours with other words in one place: how a lesson knows what a slip leads to.

Invariant: the words were there, so a slip that no longer is one is noticed.
Used by the self-checks of lessons 06 and 08b.
"""

import inspect
from collections.abc import Callable
from textwrap import dedent
from typing import Any


def mutant(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """`function` with the words `new` in place of `old`; the original stays as it is.

    Raises:
        ValueError: it has no such words.
    """
    source = dedent(inspect.getsource(function))
    if old not in source:
        raise ValueError(f"{function.__name__} has no {old!r}")
    space = dict(function.__globals__)
    exec(source.replace(old, new), space)
    made: Callable[..., Any] = space[function.__name__]
    return made
