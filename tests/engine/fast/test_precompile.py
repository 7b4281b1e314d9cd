"""Kernels compiled ahead: an engine's own launches find every one of them ready."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.fast.dry_run import dry_run, rooms, shortened
from plamo_ref.engine.fast.graphs import LADDER
from plamo_ref.engine.fast.precompile import compile_ahead
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.kernels.choice import TORCH

pytest.importorskip("triton")
HERE = Path(__file__).parents[2]


def test_an_engine_compiles_nothing_that_the_dry_run_did_not(tmp_path):
    """Decodes of several sizes, prompts cut and whole, mixed steps. See compiled_ahead.py."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, HERE / "compiled_ahead.py", "--ahead"],
        env=variables | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] > 10
    assert found["late"] == []
    compiled = set(found["ahead"])
    assert {"decode_kernel", "prefill_kernel", "state_update_kernel", "scan_kernel"} <= compiled


def test_the_short_model_has_every_kind_of_layer():
    for config in SHAPES.values():
        short = shortened(config)
        assert set(short.layer_kinds) == set(config.layer_kinds)
        assert short.num_hidden_layers == 2
    one = shortened(replace(SHAPES["1b"], full_attention_idx=(3,)))
    assert set(one.layer_kinds) == {"mamba", "sliding_window", "full"}


def test_the_dry_run_decodes_at_every_rung_and_prefills_the_largest_step():
    engine = EngineConfig(max_num_seqs=40, max_num_batched_tokens=300)
    plan = plan_memory(
        SHAPES["1b"], engine, 10**12, dtype=torch.bfloat16, state_dtype=torch.float32
    )
    seen = list(rooms(engine, plan))
    rows = [room.decodes for room in seen if not room.prompts]
    assert set(rows) == {*(n for n in LADDER if n < 40), 40}
    assert max(room.tokens for room in seen) == 300


def test_a_dry_run_with_twins_touches_no_memory():
    """8B weights, a cache for 64 requests: all on the meta device."""
    engine = EngineConfig(max_num_batched_tokens=16)
    operations = {"paged_prefill", "conv_prefill", "scan_prefill"}  # these twins read the device
    called = []

    def stand_in(name):
        def call(x, *arguments):
            called.append(name)
            inputs = x.u if name == "scan_prefill" else x
            return torch.empty_like(inputs.flatten(1) if name == "conv_prefill" else inputs)

        return call

    twins = {name: stand_in(name) for name in operations}
    ops = TORCH.but(**twins, paged_decode=lambda q, *_: torch.empty_like(q))
    dry_run(SHAPES["8b"], engine, ops, torch.bfloat16, torch.float32)
    assert set(called) == operations


def test_an_error_of_the_dry_run_reaches_whoever_waits():
    def broken() -> None:
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        compile_ahead(broken, torch.device("cpu")).result()
