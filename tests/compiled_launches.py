"""Every Triton kernel as the published models launch it, ready to be compiled with no GPU.

Invariant tested: none here. The launches are those of the kernels' own launchers: they get tensors
without content, and their launch is noted instead of run.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from plamo_ref.batch import NarrowCache
from plamo_ref.bench.kernels.parts import MODELS, Shape
from plamo_ref.bench.kernels.state_cases import NARROW
from plamo_ref.kernels.choice import triton_table
from plamo_ref.kernels.linear.triton_dequantize import dequantize
from plamo_ref.kernels.linear.triton_swiglu import swiglu_quantized
from plamo_ref.kernels.norm.triton_peers import MOST_ROWS, Memories, peer_add_norm, peer_sum, words
from plamo_ref.kernels.sample.twin import KNOBS
from plamo_ref.kernels.ssm.narrow import ReplayCache
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams
from plamo_ref.kernels.table import Kernels
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import FP8, QuantizedTokens, QuantizedWeight

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

BF16, F32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Launch:
    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int64)


def calls(table: Kernels, shape: Shape, dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """One call of each operation for a step that decodes, and one for a step that prefills."""

    def x(*sizes: int) -> Tensor:
        return empty(*sizes, dtype=dtype)

    hidden, heads, groups, size = shape.hidden, shape.heads, shape.kv_heads, shape.size
    channels = shape.mamba_heads * size
    for tokens in (8, 2048):
        stream = x(tokens, hidden)
        yield lambda s=stream: table.add_norm(s, s, x(hidden), x(hidden), 1e-6)
        yield lambda s=stream: table.rms_norm(s, x(hidden), 1e-6)
        part = x(tokens, 2 * shape.state + 256)[:, : shape.state]
        yield lambda p=part: table.rms_norm(p, x(shape.state), 1e-6)
        for t in (tokens, 64, 128) if tokens < 64 else (tokens,):
            yield lambda t=t: table.linear_swiglu(x(t, hidden), x(2 * shape.intermediate, hidden))
            yield lambda t=t: table.linear(x(t, hidden), x(2 * channels, hidden))
            yield lambda t=t: table.linear(x(t, hidden), x(shape.vocabulary, hidden))
            yield lambda t=t: table.linear_parts(x(t, channels), x(hidden // 16 + 128, channels))
            if dtype == BF16:
                yield from quantized_calls(table, shape, t)
        yield lambda: table.linear_swiglu(x(80, hidden), x(2 * shape.intermediate, hidden))
        params = SelectionParams(
            x(shape.state), x(shape.state), x(256), x(shape.mamba_heads, 256), eps=1e-6
        )
        for t, parts in ((8, 32), (128, 16)) if tokens < 64 else ((tokens, 1),):
            kind = dtype if parts == 1 else F32
            b = empty(parts, t, 2 * shape.state + 256, dtype=kind)
            yield lambda b=b, p=params: table.selection(b, p)
        for parts in (1, 4) if tokens < 64 else (1,):  # a large product comes whole
            kind = dtype if parts == 1 else F32
            y = empty(parts, tokens, hidden, dtype=kind)
            yield lambda s=stream, y=y: table.add_norm(s, y, x(hidden), x(hidden), 1e-6)
        if tokens < 64 and dtype == BF16:
            yield from peer_calls(shape, tokens)
        yield lambda t=tokens: table.argmax(x(t, shape.vocabulary))
        yield lambda t=tokens: table.rope_tables(ints(t), size, 1e6, dtype)
        knobs = empty(tokens, len(KNOBS), dtype=torch.float64)
        yield lambda t=tokens, k=knobs: table.sample(x(t, shape.vocabulary), k)
        yield lambda t=tokens: table.qk_norm_rope_write(
            x(t, (heads + 2 * groups) * size),
            x(heads, size),
            x(groups, size),
            x(2, t, 1, size // 2),
            x(100, 16, groups, size),
            x(100, 16, groups, size),
            ints(t),
        )
        yield lambda t=tokens: table.qk_norm_rope_write(
            *(x(t, (heads + 2 * groups) * size), x(heads, size), x(groups, size)),
            *(x(2, t, 1, size // 2), *(empty(100, 16, groups, size, dtype=FP8),) * 2, ints(t)),
        )
    memory = x(100, 16, groups, size)
    conv_cache = x(9, channels, shape.taps - 1)
    weight = x(channels, 1, shape.taps)[:, 0, :]
    for window, requests in ((shape.window, 8), (None, 8), (shape.window, 256)):
        for kept in (memory, empty(100, 16, groups, size, dtype=FP8)):
            paged = (kept, kept, ints(requests, 150), ints(requests), ints(requests))
            yield lambda p=paged, r=requests, w=window: table.paged_decode(x(r, heads, size), *p, w)
            yield lambda p=paged, r=requests, w=window: table.paged_prefill(
                x(2048, heads, size), *p, ints(r + 1), w
            )
    flags = empty(8, dtype=torch.int64)
    yield lambda: table.conv_update(x(8, channels), weight, conv_cache, ints(8))
    where = (ints(8), ints(9), flags, ints(3, 3))
    yield lambda: table.conv_prefill(x(2048, channels), weight, conv_cache, *where)
    for kept in (F32, BF16):
        states = empty(9, shape.mamba_heads, size, shape.state, dtype=kept)
        for requests in (2, 128):
            yield lambda r=requests, s=states: table.state_update(
                *scan(shape, r, dtype), s, ints(r)
            )
        for tokens in (64, 2048):  # short parts, long ones
            yield lambda t=tokens, s=states: table.scan_prefill(*scan(shape, t, dtype), s, *where)
    yield from narrow_calls(table, shape, dtype)


def narrow_calls(table: Kernels, shape: Shape, dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """States in few bits."""
    for kept, stochastic in NARROW:
        values = empty(9, shape.mamba_heads, shape.size, shape.state, dtype=kept)
        scales = empty(9, shape.mamba_heads, dtype=F32) if kept != BF16 else None
        cache = NarrowCache(values, values, scales, stochastic)
        for requests in (2, 128):
            r = ints(requests)
            yield lambda c=cache, r=r: table.narrow_state_update(
                *scan(shape, len(r), dtype), c, r, r
            )
        where = (ints(8), ints(9), empty(8, dtype=torch.int64), ints(3, 3), ints(8))
        yield lambda c=cache, w=where: table.narrow_scan_prefill(*scan(shape, 64, dtype), c, *w)
    for kept, entries in (*((each, 8) for each in (*NARROW, *PLAIN)), (PLAIN[0], 16)):
        cache = replay_cache(shape, dtype, kept, entries)
        for requests in (2, 128):
            r = ints(requests)
            yield lambda c=cache, r=r: table.replay_state_update(
                *scan(shape, len(r), dtype), c, r, r
            )
        params = scan(shape, 1, dtype)[1]
        yield lambda c=cache, w=where, p=params: table.replay_flush(p, c, *w)


PLAIN = ((F32, False), (BF16, False))  # states that are only stored in their dtype


def replay_cache(
    shape: Shape, dtype: torch.dtype, kept: tuple[torch.dtype, bool], entries: int
) -> ReplayCache:
    heads, size, state = shape.mamba_heads, shape.size, shape.state
    values = empty(9, heads, size, state, dtype=kept[0])
    scales = empty(9, heads, dtype=F32) if kept[0].itemsize == 1 else None
    ring = (
        empty(9, heads, entries, size, dtype=dtype),
        empty(9, entries, state, dtype=dtype),
        empty(9, heads, entries, dtype=F32),
    )
    return ReplayCache(values, values, scales, kept[1], *ring)


def peer_calls(shape: Shape, tokens: int) -> Iterator[Callable[[], Any]]:
    """Sums over four ranks, one of whom this is."""
    stream, gain, narrow = empty(tokens, shape.hidden), empty(shape.hidden), 2 * shape.state + 256
    memory = ints(words(4, MOST_ROWS, shape.hidden))
    others = {"memories": Memories(memory, ints(4), 1, MOST_ROWS, shape.hidden), "pdl": True}
    for kind, parts in ((BF16, 1), (F32, 4)):
        y = empty(parts, tokens, shape.hidden, dtype=kind)
        yield lambda y=y: peer_add_norm(stream, y, gain, gain, 1e-6, **others)
        yield lambda y=y: peer_sum(y[:, :, :narrow], **others)


def quantized_calls(table: Kernels, shape: Shape, tokens: int) -> Iterator[Callable[[], Any]]:
    """Products with a weight of each kind, and what stands around them."""
    hidden = shape.hidden
    x = empty(tokens, hidden)
    gain, parts = empty(hidden), empty(2, tokens, 2 * shape.intermediate, dtype=F32)
    if tokens > 128:
        yield lambda: table.quantize_tokens(x)
        yield lambda: table.add_norm(x, x, gain, gain, 1e-6, True)
        yield lambda: swiglu_quantized(parts, BF16)
    for scheme in ("fp8", "fp8_weight_only", "int8", "int4"):
        weight = gate_up(shape, scheme)
        given = x
        if weight.quantized_activations:
            given = QuantizedTokens(
                empty(tokens, hidden, dtype=FP8), empty(tokens, dtype=F32), BF16
            )
        if tokens in (8, 128):
            yield lambda g=given, w=weight: table.quantized_linear_parts(g, w)
        if tokens == 128 and weight.unit:
            many = empty(256, hidden)
            yield lambda w=weight, x=many: table.quantized_linear_parts(x, w)
        if tokens <= 128:
            yield lambda g=given, w=weight: table.quantized_linear_swiglu(g, w)
        else:
            yield lambda w=weight: dequantize(w, BF16)


@cache
def gate_up(shape: Shape, scheme: str) -> QuantizedWeight:
    return quantize(empty(2 * shape.intermediate, shape.hidden), SCHEMES[scheme])


def scan(shape: Shape, tokens: int, dtype: torch.dtype) -> tuple[ScanInputs, ScanParams]:
    heads, size = shape.mamba_heads, shape.size
    gate = empty(tokens, heads, 2, size, dtype=dtype)[:, :, 0]
    inputs = ScanInputs(
        u=empty(tokens, heads, size, dtype=dtype),
        z=gate,
        dt=empty(tokens, heads, dtype=dtype),
        B=empty(tokens, shape.state, dtype=dtype),
        C=empty(tokens, shape.state, dtype=dtype),
    )
    return inputs, ScanParams(*(empty(heads, dtype=F32) for _ in range(3)))


@cache
def launches(shape: Shape, dtype: torch.dtype, capability: int = 90) -> tuple[Launch, ...]:
    """What the launchers would launch. Noted, not run: nothing here has content."""
    found: list[Launch] = []

    def note(kernel: Any, grid: Any, *arguments: Any, config: Any, **constants: Any) -> None:
        assert all(0 < n < 2**31 for n in grid)
        assert all(n < 2**16 for n in grid[1:]), f"{kernel}: {grid} is beyond what CUDA launches"
        found.append(Launch(kernel, arguments, constants, config.warps, config.stages))

    table = triton_table(pdl=True)
    modules = [
        m for name, m in sys.modules.items() if re.match(r"plamo_ref\.kernels\..*\.triton", name)
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("ssm.triton_plan", "linear.triton_words_product"):
            patch.setattr(
                f"plamo_ref.kernels.{module}.before_hopper", lambda device: capability < 90
            )
        for module in ("triton_words_product", "triton_quantized"):
            patch.setattr(
                f"plamo_ref.kernels.linear.{module}.has_wgmma", lambda device: capability == 90
            )
        patch.setattr(
            "plamo_ref.kernels.linear.triton_numbers.knows_fp8", lambda device: capability >= 89
        )
        patch.setattr(
            "plamo_ref.kernels.linear.triton_tiles.has_copy_engine",
            lambda device: capability >= 90,
        )
        for module in modules:
            if hasattr(module, "launch"):
                patch.setattr(module, "launch", note)
        for call in calls(table, shape, dtype):
            call()
    return tuple(found)


TYPES = {
    BF16: "*bf16",
    torch.int32: "*i32",
    F32: "*fp32",
    FP8: "*fp8e4nv",
    torch.int8: "*i8",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.float64: "*fp64",
}


@dataclass(frozen=True)
class Source:
    """What goes into the compiler."""

    made: ASTSource
    capability: int
    options: dict[str, Any]

    def compile(self) -> Any:
        target = GPUTarget("cuda", self.capability, 32)
        return triton.compile(self.made, target=target, options=self.options)


def source(launch: Launch, capability: int) -> Source:
    """The launch as Triton would specialise it."""
    kernel, signature, attributes, constants = launch.kernel, {}, {}, dict(launch.constants)
    if capability < 90 and "PDL" in constants:  # Ampere has no such launch
        constants["PDL"] = False
    for index, value in enumerate(launch.arguments):
        param = kernel.params[index]
        fixed = param.do_not_specialize or param.do_not_specialize_on_alignment
        if isinstance(value, Tensor):
            signature[param.name] = TYPES[value.dtype]
            aligned = not fixed
        elif isinstance(value, TensorDescriptor):
            kind = TYPES[value.base.dtype].removeprefix("*")
            signature[param.name] = f"tensordesc<{kind}{list(value.block_shape)}>"
            aligned = False
        elif isinstance(value, float):
            signature[param.name] = "fp32"
            aligned = False
        elif value == 1 and not fixed:
            signature[param.name], constants[param.name] = "constexpr", 1
            aligned = False
        else:
            signature[param.name] = "i32"
            aligned = value % 16 == 0 and not fixed
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(launch.constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    where = {name: kernel.arg_names.index(name) for name in constants}
    fixed_values = {(where[name],): value for name, value in constants.items()}
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,
        "launch_pdl": constants.get("PDL", False),
    }
    return Source(ASTSource(kernel, signature, fixed_values, attributes), capability, options)


def words_in_float32() -> tuple[Launch, ...]:
    """Products with int8 and int4 weights: there a group of 128 columns is 512 bytes of a row."""
    found: list[Launch] = []

    def note(kernel: Any, grid: Any, *arguments: Any, config: Any, **constants: Any) -> None:
        found.append(Launch(kernel, arguments, constants, config.warps, config.stages))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plamo_ref.kernels.linear.triton_words_product.launch", note)
        for scheme in ("int8", "int4"):
            weight = quantize(empty(256, 1024), SCHEMES[scheme])
            for tokens in (1, 128):
                triton_table(pdl=True).quantized_linear(empty(tokens, 1024, dtype=F32), weight)
            triton_table(pdl=True).quantized_linear_swiglu(empty(64, 1024, dtype=F32), weight)
    return tuple(found)


def products_in_float32() -> tuple[Launch, ...]:
    """The first launch of each kernel that multiplies matrices itself. On a GPU float32 is for
    checking: each operand is two tf32 values."""
    names = ("decode_kernel", "prefill_kernel", "scan_kernel")
    found = {launch.kernel.__name__: launch for launch in reversed(launches(MODELS[0], F32))}
    return tuple(found[name] for name in names)


@cache
def on_record() -> tuple[Source, ...]:
    """All of which compiled.json has to tell: see compiled_record.py."""
    found = [
        source(launch, capability)
        for capability in (80, 90)
        for shape in MODELS
        for launch in launches(shape, BF16, capability)
    ]
    checking = (*products_in_float32(), *words_in_float32())
    return (*found, *(source(launch, 90) for launch in checking))
