"""An engine with Triton kernels on a machine without a GPU.

Run as a program by test_precompile.py, since Triton's driver belongs to the whole process. The
driver here launches nothing; kernels are compiled for an H100, as far as Triton's own language
before layouts: which of them are compiled, and when, is decided before that, and what the rest of
the compiler makes of them is for tests/kernels/test_triton_compile.py. Prints as JSON what was
compiled in the dry run, and what an engine's launches still had to compile afterwards.
"""

import json
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.workloads import run
from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.fast.dry_run import dry_run
from plamo_ref.engine.fast.precompile import compile_ahead
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import triton_table
from plamo_ref.proof.lab import lab_config
from plamo_ref.weights.random import random_model

CPU, BF16, F32 = torch.device("cpu"), torch.bfloat16, torch.float32
ENGINE = EngineConfig(block_size=4, max_num_seqs=9, max_num_batched_tokens=70)


def stand_in() -> SimpleNamespace:
    """Answers what Triton asks of a driver; a launch does nothing."""
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
        load_binary=lambda *_: (1, 1, 32, 0, 1024),
    )
    return SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=utils,
    )


def ended_early(*given: Any) -> tuple[str, str] | None:
    """Triton's hook: asked without arguments for a key of the stages, then for the stages."""
    if not given:
        return "ended early", "'ended early'"
    stages = given[1]
    for stage in ("ttgir", "llir", "ptx"):
        del stages[stage]
    stages["cubin"] = without_code
    return None


def without_code(_: object, metadata: dict[str, Any]) -> bytes:
    metadata |= {"name": "none", "shared": 0}
    return b""


def main() -> None:
    compiled: list[str] = []

    def listen(*, src: object, cache_hit: bool, **_: object) -> None:
        if not cache_hit:
            compiled.append(src.name)

    driver.set_active(stand_in())
    knobs.compilation.listener = listen
    knobs.runtime.add_stages_inspection_hook = ended_early
    config = lab_config(attention_window_size=300, hidden_size_per_head=16, vocab_size=300)
    ops = triton_table()
    if "--ahead" in sys.argv:
        compile_ahead(partial(dry_run, config, ENGINE, ops, BF16, F32), CPU).result()
    ahead, compiled[:] = list(compiled), []
    plan = plan_memory(config, ENGINE, 50_000_000, dtype=BF16, state_dtype=F32)
    # Nothing was computed, so whatever lies in new memory would be taken for a token.
    drawn = ops.but(argmax=lambda *arguments: ops.argmax(*arguments).zero_())
    runner = ModelRunner(random_model(config, drawn, BF16, CPU), plan, F32)
    core = new_core(runner, plan, ENGINE)
    run(core, Trace.of((3, 2), (61, 9), (400, 3), (7, 12), *[(5, 20)] * 7, (1, 1), (333, 4)))
    print(json.dumps({"ahead": ahead, "late": compiled, "steps": core.num_steps}))


if __name__ == "__main__":
    main()
