"""Put an engine together: device, kernels, weights, plan, runner, core.

Invariant: this is the only place that knows the order; everything it makes is passed on, nothing
is kept. What only makes a step faster (`engine/fast/`, `parallel/`) is imported where it is asked
for: without it the same engine runs, and a laptop loads none of it.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.device_bytes import cache_budget, has_spare_memory
from plamo_ref.engine.memory.planner import MemoryPlan, plan_memory
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import can_overlap, select
from plamo_ref.kernels.linear.quantized import check_scheme
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model

if TYPE_CHECKING:
    from plamo_ref.cluster.offline import Replicas

ModelLoader = Callable[[Kernels, torch.dtype, torch.device], Plamo2Model]


def open_replicas(llm: type, folder: Path, engine: EngineConfig) -> "Replicas | None":
    """Several engines, each in an `llm` of its own; None: one is asked for.

    Raises:
        PlamoRefError: there is no Ray, or one of them cannot start.
    """
    if engine.data_parallel_size == 1:
        return None
    from plamo_ref.cluster.offline import Replicas

    return Replicas(llm, folder, engine)


def build_core(
    model: Plamo2Config, engine: EngineConfig, load: ModelLoader
) -> tuple[EngineCore, MemoryPlan]:
    """An engine, in this process or shared with others (`EngineConfig.num_ranks`).

    Raises:
        EngineError: the settings do not work on this machine, or the cache is too small.
    """
    if engine.data_parallel_size > 1:
        raise EngineError(
            f"data_parallel_size={engine.data_parallel_size}: this is one engine; several are for "
            "`LLM` and `plamo-ref serve`"
        )
    # Said once, for all ranks.
    device, why = engine.resolve_device(), tuple[str, ...]()
    engine = replace(engine, enable_prefix_caching=engine.resolve_prefix_caching(device))
    if device.type == "cuda":
        from plamo_ref.engine.memory.card import fit_to_card

        engine, why = fit_to_card(engine, model, device)
    if engine.num_ranks > 1:
        from plamo_ref.parallel.driver import build_driver

        runner, plan = build_driver(model, engine, load, build_runner)
    else:
        runner, plan = build_runner(model, engine, load)
    plan = replace(plan, reasons=(*plan.reasons, *why))
    return new_core(runner, plan, engine), plan


def build_runner(
    model: Plamo2Config,
    engine: EngineConfig,
    load: ModelLoader,
    agree: Callable[[int], int] = int,
) -> tuple[ModelRunner, MemoryPlan]:
    """Load the weights with `load`, then divide the memory that is left; of so many bytes as those
    who share the model `agree` on."""
    device = engine.resolve_device()
    dtype = engine.resolve_dtype(device)
    state_dtype = engine.resolve_state_dtype(dtype)
    ops = select(engine.kernels, device=device, dtype=dtype, pdl=engine.pdl and can_overlap(device))
    check_scheme(model.quantization, ops.name, device)
    compiled: Future[None] | None = None
    if engine.precompile and ops.name == "triton" and device.type == "cuda":
        from plamo_ref.engine.fast.dry_run import dry_run
        from plamo_ref.engine.fast.precompile import compile_ahead

        compiled = compile_ahead(partial(dry_run, model, engine, ops, dtype, state_dtype), device)
    loaded = load(ops, dtype, device)
    if compiled is not None:
        compiled.result()  # before the first launch, which would compile the same once more
    budget = agree(cache_budget(engine, device, model, dtype.itemsize))
    plan = plan_memory(model, engine, budget, dtype=dtype, state_dtype=state_dtype)
    if engine.compile != "none":
        from plamo_ref.engine.fast.compiling import compile_model, warm_up

        loaded = compile_model(loaded, engine.compile, engine.compile_sizes)
    try:
        runner = ModelRunner(loaded, plan, state_dtype)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU it has no own class
        if "memory" not in str(error):
            raise
        message = f"{device} has no {budget:,} bytes for the cache: lower memory_bytes"
        raise EngineError(message) from error
    # The torch twins read lengths back to the host, which no graph can record.
    if engine.cuda_graphs and device.type == "cuda" and ops.name != "torch":
        from plamo_ref.engine.fast.graphs import Graphs

        has_drafts = engine.speculative_config is not None
        room = (engine.graph_tokens, has_drafts)
        runner.recordings = Graphs(loaded, runner.caches, plan, *room)
    if engine.compile != "none":
        warm_up(loaded, runner.caches, engine.compile_sizes)
    return runner, plan


def new_core(runner: ModelRunner, plan: MemoryPlan, engine: EngineConfig) -> EngineCore:
    """The core of a runner, with tables for penalties and biases where they are wanted."""
    if engine.pipeline_parallel_size > 1:
        from plamo_ref.parallel.pipeline import PipelinedCore

        core: EngineCore = PipelinedCore(runner, plan, engine)
    else:
        core = EngineCore(runner, plan, engine)
    if engine.speculative_config is not None:
        from plamo_ref.engine.speculation.drafter import Drafter

        vocabulary = runner.model.config.vocab_size
        core.queues.drafter = Drafter(engine, core.cache, vocabulary)
    if engine.adjust_tables:
        from plamo_ref.engine.fast.adjust_tables import AdjustTables

        core.tables = AdjustTables()
    if engine.warm_up_seconds and runner.recordings is not None:
        from plamo_ref.engine.fast.warm_up import WarmUp

        weights = runner.model.embedding
        spare = partial(
            has_spare_memory, engine, weights.device, runner.model.config, weights.itemsize
        )
        core.warm_up = WarmUp(runner, plan, engine, spare)
    if isinstance(engine.record, str):
        from plamo_ref.recorder.recorder import Recorder

        Recorder(core, engine.record)
    return core
