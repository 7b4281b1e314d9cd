"""Whose error it is: a request's own, or nobody's.

A step works for all its requests at once, so an error in it does not say who is to blame. It is
then done again for each alone: who fails alone ends with that error, and the others have what they
wanted. An error that nobody repeats alone belongs to the step and is raised.

Invariant: an interrupt and a lack of memory are never blamed on a request: they say nothing of it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from plamo_ref.engine.request import FinishReason

T = TypeVar("T")
Work = Callable[..., FinishReason | None]


def is_nobodys(error: Exception) -> bool:
    """Whether an error says nothing of the request that was being worked on."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def together_or_alone(
    count: int, work: Callable[[slice], T], instead: T
) -> tuple[list[T], dict[int, Exception]]:
    """Do `work` for rows 0 to count - 1 in one go, or row by row if that fails.

    Args:
        work: done for a slice of the rows; can be done again after it has failed.
        instead: stands in the place of what a row that fails would have given.

    Returns:
        What `work` returned, whose parts follow each other, and by row the errors.

    Raises:
        Exception: that of the work for all, if no row repeats it.
    """
    try:
        return [work(slice(0, count))], {}
    except Exception as error:
        if is_nobodys(error):
            raise
        parts, errors = [], dict[int, Exception]()
        for row in range(count):
            try:
                parts.append(work(slice(row, row + 1)))
            except Exception as its_error:
                if is_nobodys(its_error):
                    raise
                parts.append(instead)
                errors[row] = its_error
        if not errors:
            raise
        return parts, errors
