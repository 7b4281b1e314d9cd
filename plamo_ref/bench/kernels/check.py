"""Every Triton kernel against its torch twin: `python -m plamo_ref.bench.kernels.check`.

    --time      the published models' shapes on the GPU, timed: GB/s or TFLOP/s, share of the floor
    --model M   8B or 1B (default: both)
    --only OP   only this operation, as in scan_prefill; repeatable
    --part I/N  share I of N, as in 1/3: every N-th comparison, so that one call is short

On a CUDA GPU: float32 and bfloat16, odd shapes and the published models' shapes. Without one:
Triton's interpreter, which proves the arithmetic and the addressing in float32 at odd shapes, and
nothing about bfloat16, speed or races.

The truth is the twin in float64 on the same numbers; the error is ‖got - truth‖ / ‖truth‖, beside
it the largest single difference over the largest truth. Elements that the twin leaves NaN must be
NaN: nothing else may be written.

Invariant: exits with 0 only if every comparison asked for that this machine can make was made and
is good.
"""

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from plamo_ref.batch import NarrowCache
from plamo_ref.bench.kernels.cases import model_cases, small_cases
from plamo_ref.bench.kernels.ceilings import measure_ceilings
from plamo_ref.bench.kernels.parts import MODELS, Case
from plamo_ref.bench.kernels.timing import HEADER, copied, line, time_kernels
from plamo_ref.kernels.choice import TORCH, triton_table
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.linear.twin import whole
from plamo_ref.kernels.ssm.narrow import ReplayCache, widen
from plamo_ref.kernels.table import OPERATIONS, Kernels
from plamo_ref.quantization.weight import QuantizedTokens

# Ratio of norms. float32: rounding, and three-part tf32 on a GPU. bfloat16: 8 bits of fraction,
# after up to three roundings in a row.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
AT_A_BORDER = 0.018  # the two largest numbers of e4m3, 416 and 448, are 7 % apart: a fourth of it
BYTES = 0.03  # of states in e4m3 or int8: some fall on the other side of such a border
MAXIMUM = 4.0  # the largest difference may be so many times the limit, over the largest truth


def results(case: Case, table: Kernels, dtype: torch.dtype | None = None) -> list[Tensor]:
    """What the call returns and what it changed, on copies of the arguments."""
    arguments = [copied(a, dtype) for a in case.arguments]
    returned = getattr(table, case.operation)(*arguments)
    returned = returned if isinstance(returned, tuple) else (returned,)
    returned = tuple(r for r in returned if r is not None)
    if case.operation.endswith("linear_parts"):  # into how many parts is the kernel's own business
        returned = (whole(returned[0], arguments[0].dtype),)
    made = [t for r in returned for t in (_tensors(r) if isinstance(r, QuantizedTokens) else [r])]
    return [*made, *(n for i in case.written for n in _numbers(arguments[i]))]


def _tensors(tokens: QuantizedTokens) -> tuple[Tensor, Tensor]:
    return tokens.values.double(), tokens.scale


def _numbers(written: Tensor | NarrowCache) -> list[Tensor]:
    """What was written; of states in few bits, what they stand for."""
    if isinstance(written, Tensor):
        return [written]
    every = torch.arange(len(written.ssm), device=written.ssm.device)
    states = widen(written, every, torch.float64)
    if not isinstance(written, ReplayCache):
        return [states]
    return [states, written.ring_u, written.ring_b, written.ring_delta]


def compare(got: list[Tensor], truth: list[Tensor]) -> tuple[float, float]:
    """The largest ratio of norms and the largest maximum; infinite where NaN is in other places, or
    where integers, which have no rounding, differ."""
    ratios, most = [0.0], [0.0]
    for g, t in zip(got, truth, strict=True):
        if g.shape != t.shape or not torch.equal(g.isnan(), t.isnan()):
            return float("inf"), float("inf")
        if not t.is_floating_point() and not torch.equal(g, t):
            return float("inf"), float("inf")
        g, t = g.double().nan_to_num(0.0), t.double().nan_to_num(0.0)
        if t.numel():
            ratios.append(float((g - t).norm() / t.norm().clamp_min(1e-30)))
            most.append(float((g - t).abs().max() / t.abs().max().clamp_min(1e-30)))
    return max(ratios), max(most)


def limit_of(case: Case, dtype: torch.dtype) -> float:
    """A state kept in bfloat16 is rounded when it is stored, whatever computes it. Of numbers that
    become e4m3 a few lie so near to a border that float32 puts them on its other side."""
    makes_fp8 = case.operation in ("add_norm", "quantized_linear_swiglu")
    if case.operation == "quantize_tokens" or (makes_fp8 and case.arguments[-1] is True):
        # What is made e4m3 behind an operation was bfloat16 before: more of it lies on a border.
        return BYTES if makes_fp8 and dtype == torch.bfloat16 else AT_A_BORDER
    if case.operation.startswith("narrow_"):
        return BYTES
    kept = [getattr(case.arguments[i], "ssm", case.arguments[i]) for i in case.written]
    stored = [tensor.dtype for tensor in kept]
    return max(LIMITS.get(kind, BYTES) for kind in (dtype, *stored))


def check(
    cases: Iterable[Case], dtype: torch.dtype, table: Kernels
) -> Iterator[tuple[Case, float, float, float, bool]]:
    """For each case: the kernel's ratio and maximum, the twin's ratio, and whether it is good."""
    for case in cases:
        truth = results(case, TORCH, torch.float64)
        ratio, most = compare(results(case, table), truth)
        own, _ = compare(results(case, TORCH), truth)
        limit = limit_of(case, dtype)
        yield case, ratio, most, own, ratio <= limit and most <= MAXIMUM * limit


def every_case(
    device: torch.device, models: Collection[str], only: Collection[str] = ()
) -> Iterator[tuple[torch.dtype, str, Case]]:
    """What can be compared on this device, in one order: dtype, the model's name, the case."""
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    for dtype in dtypes:
        sources = [("", small_cases(device, dtype))]
        if device.type == "cuda":
            wanted = [shape for shape in MODELS if shape.name in models]
            sources += [(shape.name, model_cases(device, dtype, shape)) for shape in wanted]
        for model, cases in sources:
            for case in cases:
                if not only or case.operation in only:
                    yield dtype, model, case


def check_all(
    device: torch.device,
    models: list[str],
    only: Collection[str] = (),
    part: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Print one table, and the failures once more at its end. Returns how many there are, and how
    many comparisons. `part`: which of how many shares."""
    table, bad, count = triton_table(), list[str](), 0
    print(f"{'':4} {'dtype':8} {'case':56} {'ratio':>9} {'maximum':>9} {'twin':>9}")
    for dtype, model, one in islice(every_case(device, models, only), part[0] - 1, None, part[1]):
        kind = str(dtype).removeprefix("torch.").replace("float", "f")
        for case, ratio, most, own, good in check([one], dtype, table):
            name = f"{model}: {case.operation} {case.name}" if model else case.name
            word = "ok" if good else "BAD"
            line = f"{word:4} {kind:8} {name:56} {ratio:9.1e} {most:9.1e} {own:9.1e}"
            print(line)
            bad += [] if good else [line]
            count += 1
    print(*bad, sep="\n")
    return len(bad), count


def share(text: str) -> tuple[int, int]:
    """What `--part` was given, as in "1/3"."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share as in 1/3")
    return int(number), int(count)


def time_all(device: torch.device, models: list[str], only: Collection[str] = ()) -> None:
    """Print a line for each timed call; the floor is that of this machine, measured now."""
    ceilings = measure_ceilings(device, torch.bfloat16)
    print(*(f"{key}: {value}" for key, value in ceilings.row().items()), sep="; ")
    print(HEADER)
    for row in time_kernels(device, models, ceilings, only):
        print(line(row), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 good, 1 a kernel is wrong, 2 it cannot be done here."""
    parser = argparse.ArgumentParser(prog="python -m plamo_ref.bench.kernels.check")
    parser.add_argument("--time", action="store_true", help="time the kernels (needs a GPU)")
    parser.add_argument("--model", choices=[s.name for s in MODELS], help="only this shape")
    parser.add_argument("--only", action="append", choices=OPERATIONS, default=[])
    parser.add_argument("--part", type=share, default=(1, 1), metavar="I/N", help="share I of N")
    options = parser.parse_args(arguments)
    if options.time and options.part != (1, 1):
        parser.error("--part is for comparisons, not for --time")
    models = [options.model] if options.model else [s.name for s in MODELS]
    if torch.cuda.is_available():
        device = torch.device("cuda")
        print(f"on {torch.cuda.get_device_name(device)}")
        if options.time:
            time_all(device, models, options.only)
            return 0
    elif options.time:
        print("--time needs a CUDA GPU", file=sys.stderr)
        return 2
    else:
        # Triton decides when a kernel is defined, and none is defined before `triton_table`.
        os.environ["TRITON_INTERPRET"] = "1"
        device = torch.device("cpu")
        print(
            "no CUDA GPU: Triton's interpreter, float32, odd shapes. Not checked: bfloat16, speed"
        )
    try:
        bad, count = check_all(device, models, options.only, options.part)
    except ImportError as error:
        raise KernelError(f"Triton cannot be imported here: {error}") from None
    if not count:
        print("nothing to compare: no such case, or more parts than cases", file=sys.stderr)
        return 2
    print(f"{bad} of {count} comparisons are bad" if bad else f"all {count} are good")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
