"""check_kernel(): is a reader's kernel right, and was it the kernel that did the work?

    trial = Trial({"x": x, "out": unwritten(10)}, {"out": x}, {"copy_kernel": 3})
    check_kernel("a copy", copy, [copy_kernel], [trial], hint="...")

Invariant: a ✓ says that every output was written by launched programs of the reader's own kernels,
as many as the task needs, out of the tensors that were given, and by nothing else: no operation of
torch prepared an input, filled an output, or mended one.
Used by lessons 10 and 11.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plamo_ref.teaching.checks import CheckFailed, check_exercise, noted
from plamo_ref.teaching.launches import Launch, LaunchError, counting, is_interpreted
from plamo_ref.teaching.watching import Seen, WatchError, watch

_UNWRITTEN = 0x7FC0DEAD  # bits of a NaN that no arithmetic makes
_OUTSIDE = 0x7FC10000  # and of others, for what lies around a tensor
_FENCE = 64  # elements in front of and behind each tensor, which nobody may write

Tensors = dict[str, Tensor]
Mistakes = Mapping[str, Callable[["Trial"], Any]]


@dataclass(frozen=True)
class Trial:
    """Inputs that the reader has not seen, and what a kernel should make of them.

    Attributes:
        given: the launcher's arguments, by name and in order: inputs, outputs, scratch, numbers.
        expected: output → what it holds in the end. An element that is NaN is not to be touched.
        programs: kernel → how many programs one launch of it has at least.
        scratch: tensors of `given` that kernels may write besides the outputs.
        read_once: inputs of which no element is to be loaded twice (seen by the interpreter only).
    """

    given: Mapping[str, Any]
    expected: Mapping[str, Tensor]
    programs: Mapping[str, int]
    scratch: tuple[str, ...] = ()
    read_once: tuple[str, ...] = ()


def unwritten(*shape: int) -> Tensor:
    """A float32 tensor in which every element can be told from one that was stored."""
    return torch.full(shape, _UNWRITTEN, dtype=torch.int32).view(torch.float32)


@noted
def check_kernel(
    name: str,
    run: Callable[..., Any],
    kernels: Sequence[Any],
    trials: Sequence[Trial],
    *,
    hint: str = "",
    mistakes: Mistakes | None = None,
    atol: float | None = None,
) -> None:
    """`check_exercise` for a kernel with its launcher; open as long as NotImplementedError.

    Args:
        run: launches the kernels on a trial's `given`, which it gets by position.
        mistakes: sentence → function of a trial that gives what this mistake leads to: a dict as
            `expected`, or the tensor where there is one output.

    Raises:
        CheckFailed: with what was found, the likely mistake or `hint`, and no expected value.
    """
    if not trials:
        raise ValueError("check_kernel: no trials")
    try:
        for number, trial in enumerate(trials, start=1):
            tried = _Run(run, kernels, trial)
            got = tried.outputs()
            if problem := _gaps(trial, got):
                raise LaunchError(problem)
            wanted = {key: _blanked(trial, key, trial.expected[key]) for key in trial.expected}
            if _close(got, wanted, atol):
                tried.loads_nothing_twice()
                if number < len(trials):
                    continue
            likely = {
                sentence: (lambda lead=lead, trial=trial: _of_mistake(trial, lead(trial)))
                for sentence, lead in (mistakes or {}).items()
            }
            single = _single(got), _single(wanted)
            check_exercise(name, *single, hint=hint, mistakes=likely, atol=atol)
            return
    except (LaunchError, WatchError) as error:
        raise CheckFailed(f"✗ {name}: {error}") from None
    except CheckFailed:
        raise
    except Exception as error:
        _fail(name, _root(error), hint)


def _fail(name: str, error: BaseException, hint: str) -> None:
    """Say what the reader's code raised; nothing was raised by an open stub."""
    last = "".join([line.strip() for line in str(error).splitlines() if line.strip()][-1:])
    kind = type(error).__name__
    if kind == "InterpreterError":  # it quotes what was raised
        kind, _, last = last.partition("(")
        last = last.rstrip(")")
    if kind == "NotImplementedError":
        check_exercise(name, ..., None)
        return
    if isinstance(error, WatchError):
        raise CheckFailed(f"✗ {name}: {error}") from None
    tail = f"\n  Look at: {hint}" if hint else ""
    raise CheckFailed(f"✗ {name}: your code raised {kind}: {last}{tail}") from None


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Run:
    """One trial: tensors with fences, the launches on them, and who changed what in between."""

    def __init__(self, run: Callable[..., Any], kernels: Sequence[Any], trial: Trial) -> None:
        self.run, self.kernels, self.trial = run, kernels, trial
        self.interpreted = bool(kernels) and is_interpreted(kernels[0])
        device = torch.device("cpu" if self.interpreted else "cuda")
        self.seen: Seen | None = None
        self.buffers: Tensors = {}
        self.tensors: Tensors = {}
        for number, (name, value) in enumerate(trial.given.items()):
            if isinstance(value, Tensor):
                self.buffers[name], self.tensors[name] = _fenced(value, number, device)
                if name in trial.scratch:  # arithmetic keeps a NaN's bits: not those of an output
                    self.tensors[name].fill_(torch.nan)
        self.first = self.kept = self._copies()

    def outputs(self) -> Tensors:
        """What the kernels wrote, on the CPU; what was not to be touched is 0."""
        given = [self.tensors.get(k, v) for k, v in self.trial.given.items()]
        watched = watch(others=False, **self.tensors) if self.interpreted else nullcontext()
        counted = counting(*self.kernels, before=self._before, after=self._after)
        # Warnings of NaN are not for the reader: the check says it in a sentence.
        quiet = warnings.catch_warnings(action="ignore", category=RuntimeWarning)
        with quiet, counted as launches, watched as self.seen, np.errstate(all="ignore"):
            self.run(*given)
        self._unchanged("after the last launch", launches[-1:])
        self._enough(launches)
        self._only_what_may_be_written()
        if self.seen is not None:
            self._watched(self.seen)
        return {name: self.tensors[name].cpu() for name in self.trial.expected}

    def _copies(self) -> Tensors:
        return {name: buffer.clone() for name, buffer in self.buffers.items()}

    def _before(self, launch: Launch) -> None:
        """Kernels see what was given, as it was given or as kernels left it."""
        known = {b.untyped_storage().data_ptr() for b in self.buffers.values()}
        for name, tensor in launch.tensors.items():
            if tensor.untyped_storage().data_ptr() not in known:
                raise LaunchError(
                    f"{launch.kernel} got a {name} that is none of {', '.join(self.buffers)}: "
                    "what it reads and writes are the tensors that the launcher was given"
                )
        self._unchanged(f"before {launch.kernel} ran", [])

    def _after(self, launch: Launch) -> None:
        self.kept = self._copies()

    def _unchanged(self, when: str, launches: Sequence[Launch]) -> None:
        for name, buffer in self.buffers.items():
            if not _same_bits(buffer, self.kept[name]):
                raise LaunchError(f"{name} was changed {when}, and by no kernel")

    def _enough(self, launches: Sequence[Launch]) -> None:
        for kernel, least in self.trial.programs.items():
            most = max((x.programs for x in launches if x.kernel == kernel), default=0)
            if not most:
                raise LaunchError(f"{kernel} was never launched: `{kernel}[grid](…)` runs it")
            if most < least:
                raise LaunchError(
                    f"{kernel} ran as {most} program{'s' * (most > 1)}; "
                    "here there is work for more of them: look at the grid"
                )

    def _only_what_may_be_written(self) -> None:
        for name, buffer in self.buffers.items():
            may, whole = name in (*self.trial.expected, *self.trial.scratch), self.first[name]
            if not may and not _same_bits(buffer, whole):
                raise LaunchError(f"{name} is an input, and was written to")
            for part in (slice(0, _FENCE), slice(-_FENCE, None)):
                if not _same_bits(buffer[part], whole[part]):
                    raise LaunchError(f"a store went past an end of {name}: is a mask missing?")

    def _watched(self, seen: Seen) -> None:
        """What only the interpreter sees: two writers, idle programs, keys that are read twice."""
        for name in self.trial.expected:
            writers = seen.counts(name, "store")
            if writers.max(initial=0) > 1:
                place = ", ".join(str(int(i)) for i in torch.tensor(writers).argmax().view(1))
                raise LaunchError(f"element {place} of {name} is stored more than once")
        programs = {(a.program) for a in seen.accesses if a.kind == "store"}
        least = max(self.trial.programs.values(), default=0)
        if len(programs) < least:
            raise LaunchError(
                f"{len(programs)} program{'s' * (len(programs) != 1)} stored anything; "
                "the work is to be shared: each program has its own part of the output"
            )

    def loads_nothing_twice(self) -> None:
        """Of what is to be loaded once; the interpreter alone can tell.

        Raises:
            LaunchError: something was.
        """
        if self.seen is None:
            return
        for name in self.trial.read_once:
            if self.seen.counts(name, "load").max(initial=0) > 1:
                raise LaunchError(f"elements of {name} are loaded more than once: share the load")


def _fenced(tensor: Tensor, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(buffer, the tensor in its middle): whoever reads past an end reads NaN, or 0 of integers.

    `number` tells the tensors' NaN apart: what lies behind one shows when it is copied to another.
    """
    flat = tensor.contiguous().flatten().to(device)
    if tensor.dtype == torch.float32:
        bits = torch.full((_FENCE,), _OUTSIDE + number, dtype=torch.int32, device=device)
        fence = bits.view(torch.float32)
    else:
        fence = torch.zeros(_FENCE, dtype=tensor.dtype, device=device)
    buffer = torch.cat((fence, flat, fence))
    return buffer, buffer[_FENCE : _FENCE + flat.numel()].view(tensor.shape)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype == torch.float32:
        a, b = a.view(torch.int32), b.view(torch.int32)
    return torch.equal(a, b)


def _gaps(trial: Trial, got: Tensors) -> str:
    """Elements that nobody stored, or that were nobody's to store."""
    for name, tensor in got.items():
        free = trial.expected[name].isnan()
        before = trial.given[name]
        bits = tensor.view(torch.int32)
        kept = bits == before.contiguous().view(torch.int32)
        if (free & ~kept).any():
            return f"{name}[{_first(free & ~kept)}] was stored, and nothing belongs there"
        empty = (bits == _UNWRITTEN) & ~free
        if empty.any():
            count, size = int(empty.sum()), int((~free).sum())
            return f"nobody stored {name}[{_first(empty)}]; {count} of {size} elements are empty"
        if (odd := tensor.isnan() & ~free).any():
            return (
                f"{name}[{_first(odd)}] is NaN: 0 / 0, ∞ − ∞, or a number was loaded that "
                "nobody may read: memory that is not ours is NaN here"
            )
        tensor[free] = 0.0
    return ""


def _first(mask: Tensor) -> str:
    return ", ".join(str(int(i)) for i in mask.nonzero()[0])


def _blanked(trial: Trial, name: str, tensor: Tensor) -> Tensor:
    return tensor.masked_fill(trial.expected[name].isnan(), 0.0)


def _of_mistake(trial: Trial, leads_to: Any) -> Any:
    if isinstance(leads_to, Mapping):
        return _single({k: _blanked(trial, k, v) for k, v in leads_to.items()})
    (name,) = trial.expected
    return _blanked(trial, name, leads_to)


def _single(tensors: Tensors) -> Any:
    """The tensor itself where there is one: a message then needs no key."""
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def _close(got: Tensors, wanted: Tensors, atol: float | None) -> bool:
    bound = 1e-5 if atol is None else atol
    return all(
        bool(((got[k] - w).abs() <= bound + (0 if atol else bound) * w.abs()).all())
        for k, w in wanted.items()
    )
