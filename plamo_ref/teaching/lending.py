"""lend(): what a reader has not written yet is lent to them, so that a lesson can go on.

Invariant: what the reader has written is never replaced, unless they ask for it.
Used by the lessons whose mechanism the reader writes.
"""

from collections.abc import MutableMapping
from typing import Any


def is_open(function: Any) -> bool:
    """Whether it still is the stub, which raises NotImplementedError."""
    return function is None or "NotImplementedError" in function.__code__.co_names


def lend(
    namespace: MutableMapping[str, Any],
    ours: Any,
    name: str,
    *helpers: str,
    anyway: bool = False,
) -> None:
    """Put ours in the place of `name`, and of the helpers it comes with, while it is open.

    Args:
        namespace: the lesson's `globals()`.
        ours: the module of answers.
        anyway: also when it is written, to go on without it.
    """
    if anyway or is_open(namespace.get(name)):
        for lent in (name, *helpers):
            namespace[lent] = getattr(ours, lent)
    mine = namespace[name] is not getattr(ours, name)
    print(f"{name}: {'yours' if mine else 'lent, until yours passes'}")
