"""The Triton code that torch.compile generates for QK-norm + RoPE on a GPU, made without one.

    python benchmarks/inductor_triton.py --json notebooks/recorded/inductor_triton.json

Everything up to the source text runs on the CPU; only a GPU could run the text. This reaches into
torch's own parts (torch 2.13), so it is a tool for lesson 12 and no part of the package.
"""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import click
import torch
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget

from plamo_ref.bench.report import report, write
from plamo_ref.kernels.linear.swiglu import swiglu
from plamo_ref.kernels.norm.twin import add_norm
from plamo_ref.kernels.rope.twin import qk_norm_rope

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    total_memory=141 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=60 << 20,
)


class Driver:
    """Triton's driver, reduced to "which GPU would it be"."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))


@contextlib.contextmanager
def pretending():
    """To the compiler, there is an H200."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: H200,
        "get_compute_capability": lambda device=None: 90,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(answer)))
        for name in ("current_device", "get_device_properties"):
            patch = mock.patch.object(CudaInterface.Worker, name, staticmethod(answers[name]))
            stack.enter_context(patch)
        for name, value in (
            ("is_available", True),
            ("get_device_capability", (9, 0)),
            ("get_device_properties", H200),
        ):
            stack.enter_context(mock.patch(f"torch.cuda.{name}", return_value=value))
        stack.enter_context(mock.patch("torch.version.cuda", "13.0"))
        stack.enter_context(config.patch(compile_threads=1))
        driver = triton.runtime.driver._active
        triton.runtime.driver.set_active(Driver())
        stack.callback(setattr, triton.runtime.driver, "_active", driver)
        yield


def triton_code(function, *args):
    """The module that would be generated for `function` with arguments like `args`."""
    decompositions = select_decomp_table()
    trace = make_fx(function, decomposition_table=decompositions, tracing_mode="fake")
    graph = trace(*args)
    for node in graph.graph.nodes:  # traced on the CPU; worked out again for the GPU
        node.meta.clear()
    with pretending():
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            fakes = [
                torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda") for a in args
            ]
            FakeTensorProp(graph, mode=mode).propagate(*fakes)
        lowering = GraphLowering(graph, example_inputs=fakes)
        with contextlib.ExitStack() as stack:
            for handler in (
                V.set_fake_mode(mode),
                V.set_graph_handler(lowering),
                V.set_extern_kernel_nodes([]),
                V.set_debug_handler(DebugContext()),
            ):
                stack.enter_context(handler)
            lowering.run(*fakes)
            return lowering.codegen()[0].value


def kernels(code):
    """The bodies of the Triton kernels in a generated module, without their decorations."""
    return [part.split("''', device_str")[0].strip() for part in code.split("@triton.jit")[1:]]


def cases(tokens=32):
    """The 8B shape, bfloat16, a decode step of 32 requests: (name, function, arguments)."""

    def empty(*shape):
        return torch.empty(shape, dtype=torch.bfloat16)

    heads, groups, size, hidden, inner = 32, 4, 128, 4096, 16384
    qkv = empty(tokens, (heads + 2 * groups) * size)
    gains, tables = (empty(heads, size), empty(groups, size)), empty(2, tokens, 1, size // 2)
    stream = (*(empty(tokens, hidden) for _ in "rx"), *(empty(hidden) for _ in "pg"))
    yield "qk_norm_rope", lambda *a: qk_norm_rope(*a)[:2], (qkv, *gains, tables)
    yield "add_norm", lambda *a: add_norm(*a, 1e-6), stream
    yield "swiglu", lambda x: (swiglu(x),), (empty(tokens, 2 * inner),)


@click.command(help=__doc__)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(json_file):
    rows = []
    for name, function, args in cases():
        found = kernels(triton_code(function, *args))
        rows.append({"case": name, "kernels": found})
        print(f"{name}: {len(found)} kernels")
    if json_file is not None:
        result = report("inductor_triton", rows)
        write(result | {"machine": f"{result['machine']}, for an {H200.name}"}, json_file)


if __name__ == "__main__":
    main()
