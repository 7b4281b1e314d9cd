"""Tests in this folder need kernels that were defined for Triton's interpreter.

Invariant: they run in a process of their own, started by tests/kernels/test_triton_kernels.py,
because Triton decides when a kernel is defined whether it will be compiled or interpreted.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(scope="package", autouse=True)
def the_language_is_searched_once() -> Iterator[None]:
    """Before a kernel, and before each function that it calls, the interpreter searches all of
    triton.language for what it has to replace: a quarter of these tests' time. Nothing is compiled
    here, so what is replaced may stay so: then each kernel's module is searched once."""
    from triton.runtime import interpreter

    search, found = interpreter._patch_lang, {}
    scopes, builder = [], interpreter.interpreter_builder
    # Every sum of integers would be computed again in int64, for an assertion that is then left out
    # (it belongs to `debug`): four tenths of a kernel that is mostly addresses.
    unchecked = dataclasses.replace(builder.options, sanitize_overflow=False)

    class Kept:
        def restore(self) -> None:
            pass

    def once(fn: Callable[..., Any]) -> Kept:
        names = fn.__globals__
        if id(names) not in found:
            found[id(names)] = names  # kept, so that no other has its id
            scopes.append(search(fn))
        return Kept()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", once)
        patch.setattr(builder, "options", unchecked)
        yield
    for scope in reversed(scopes):
        scope.restore()
