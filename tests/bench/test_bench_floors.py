"""Floors, bare products, ablations, start-up: what stands beside a measured time."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plamo_ref.bench.ablation import ABLATIONS, NOTHING, Weights, ablate, chosen, with_twins
from plamo_ref.bench.floors import (
    decode_bytes,
    decode_floor,
    part_flops,
    prefill_floor,
    trace_floor,
)
from plamo_ref.bench.kernels.ceilings import Ceilings, measure_ceilings, median_seconds
from plamo_ref.bench.products import projections, time_products
from plamo_ref.bench.shapes import SHAPES, open_core, open_model
from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.startup import StartupError, time_startup
from plamo_ref.bench.steps import Bench, step_seconds
from plamo_ref.budget import (
    decode_flops,
    linear_flops,
    prefill_flops,
    weight_bytes_per_step,
)
from plamo_ref.cli import main
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.table import OPERATIONS

CPU = torch.device("cpu")
H200 = Ceilings(copy=4.28e12, product=768e12, copy_of="copy", product_of="bfloat16")
SMALL = EngineConfig(memory_bytes=40_000_000, max_num_seqs=3)


# --- floors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "batch", "state_item", "milliseconds"),
    [
        ("8b", 1, 4, 4.28),
        ("8b", 32, 2, 4.6),
        ("8b", 32, 4, 4.8),
        ("8b", 128, 2, 5.5),
        ("8b", 128, 4, 6.5),
        ("8b", 256, 2, 8.6),
        ("8b", 256, 4, 10.6),
        ("1b", 1, 4, 0.60),
        ("1b", 32, 2, 0.66),
        ("1b", 256, 2, 1.44),
    ],
)
def test_decode_floors_are_those_worked_out_by_hand(shape, batch, state_item, milliseconds):
    """At 128 + 128 tokens of context, for the ceilings of an H200."""
    floor = decode_floor(SHAPES[shape], batch, 256, 2, state_item, H200)
    assert floor * 1e3 == pytest.approx(milliseconds, rel=0.035)


def test_prefill_and_trace_floors_are_those_worked_out_by_hand():
    assert 8192 / prefill_floor(SHAPES["8b"], 1, 8192, 2, H200) == pytest.approx(43e3, rel=0.03)
    assert 8192 / prefill_floor(SHAPES["1b"], 1, 8192, 2, H200) == pytest.approx(325e3, rel=0.03)


@pytest.mark.parametrize(
    ("shape", "state_item", "seconds"),
    [("8b", 4, 8.32), ("8b", 2, 7.55), ("1b", 4, 1.29), ("1b", 2, 1.10)],
)
def test_the_mixed_workloads_floor_is_the_one_worked_out_by_hand(shape, state_item, seconds):
    """Of an H100, whose ceilings are these, step by step."""
    h100 = replace(H200, copy=3.03e12)
    engine = EngineConfig(max_num_seqs=256, max_num_batched_tokens=16384)
    floor = trace_floor(SHAPES[shape], Trace.mixed(), engine, 2, state_item, h100)
    assert floor == pytest.approx(seconds, rel=0.01)


def test_a_trace_is_the_sum_of_its_steps():
    """One prompt in two chunks, then two decodes: by the floors of prompts and decodes alone."""
    config, engine = SHAPES["8b"], EngineConfig(max_num_seqs=3, max_num_batched_tokens=4096)
    first = part_flops(config, 0, 4096, False), part_flops(config, 4096, 6000, True)
    assert sum(first) == pytest.approx(6000 * prefill_flops(config, 6000))
    assert part_flops(config, 6000, 6001, True) == pytest.approx(decode_flops(config, 6001))
    decodes = [decode_floor(config, 1, length, 2, 4, H200) for length in (6001, 6002)]
    expected = sum(H200.floor(weight_bytes_per_step(config), each) for each in first) + sum(decodes)
    floor = trace_floor(config, Trace.of((6000, 3)), engine, 2, 4, H200)
    assert floor == pytest.approx(expected, rel=1e-6)
    few = trace_floor(config, Trace.of(*[(100, 9)] * 6), engine, 2, 4, H200)
    many = trace_floor(
        config, Trace.of(*[(100, 9)] * 6), replace(engine, max_num_seqs=6), 2, 4, H200
    )
    assert few > 1.6 * many  # with half of the seats the weights are read nearly twice as often


def test_a_floor_is_bound_by_arithmetic_where_that_takes_longer():
    slow = replace(H200, product=1e12)
    assert decode_floor(SHAPES["8b"], 64, 256, 2, 4, slow) > 64 * 18e9 / 1e12
    few = prefill_floor(SHAPES["8b"], 1, 1, 2, H200)  # one token: the weights must be read
    assert few == pytest.approx(4.26e-3, rel=0.01)


def test_bytes_of_a_batch_are_the_weights_once_and_each_sequence_alone():
    config = SHAPES["8b"]
    one, two = (decode_bytes(config, n, 300, 2, 4) for n in (1, 2))
    state, keys = config.state_bytes(2, 4), 300 * config.kv_bytes_per_token("sliding_window", 2)
    assert two - one == 2 * state + keys
    assert one - (two - one) == config.num_parameters * 2
    one, two = (decode_bytes(config, n, 300, 2, 1, kv_item=1) for n in (1, 2))
    assert two - one == 2 * config.state_bytes(2, 1) + keys // 2
    one, two = (decode_bytes(config, n, 300, 2, 4, replay=8) for n in (1, 2))
    conv, ring = config.state_bytes(2, 0), config.ring_bytes(8, 2)
    # Read at each, written at every eighth; 4.5 of the ring's 8 entries, the own one among them.
    assert two - one == 2 * conv + (state - conv) * 9 // 8 + ring * 9 // 16 + keys
    assert config.state_bytes(2, 1) == (state - 24 * 2**20) + 16 * 64 * 4  # a scale for each head


def test_ceilings_are_measured_and_say_of_what():
    best = measure_ceilings(CPU, torch.float32)
    assert best.copy > 1e8
    assert best.product > 1e8
    assert best.product_of.startswith("float32 product")
    assert best.rate(best.copy, 0, 2.0) == (pytest.approx(best.copy / 2e9), "GB/s")
    assert best.rate(0, best.product, 2.0) == (pytest.approx(best.product / 2e12), "TFLOP/s")


def test_a_median_is_of_calls_and_leaves_out_the_first():
    calls = []
    median_seconds(lambda: calls.append(1), CPU, seconds=0.0, at_least=5)
    assert len(calls) == 2 + 5


# --- bare products --------------------------------------------------------------------------------


def test_the_products_are_all_projections_of_the_model():
    core, _ = open_core("tiny", None, SMALL)
    model = core.runner.model
    weights = list(projections(model))
    assert 2 * sum(w.numel() for w in weights) == linear_flops(model.config)
    assert time_products(model, 2, head=True) > 0
    assert time_products(model, 5, head=False) > 0


def test_a_step_is_the_difference_between_many_tokens_and_one(monkeypatch):
    """0.2 s for prompts and the first token, then 0.01 s a step."""
    ran = []

    def run(core, trace):
        job = trace.requests[0]
        ran.append(job.output_len)
        noise = 5.0 if len(ran) in (4, 7) else 0.0  # a median does not see it
        return type("Run", (), {"seconds": 0.2 + 0.01 * (job.output_len - 1) + noise})

    monkeypatch.setattr("plamo_ref.bench.steps.run", run)
    steps = step_seconds(None, 4, 128, 101, 3)
    assert steps == pytest.approx([0.01, 0.06, 0.01])
    assert ran == [1, 8, 1, 1, 1, 101, 101, 101]


def test_rows_hold_the_share_of_the_floor(monkeypatch):
    core, _ = open_core("tiny", None, SMALL)
    engine = Bench(core, Ceilings(copy=1e9, product=1e12, copy_of="", product_of=""), False)
    row = engine.decode(2, 4, 3, 1)
    floor = decode_floor(core.runner.model.config, 2, 5, 4, 4, engine.ceilings)
    assert row["floor_ms"] == pytest.approx(floor * 1e3, abs=1e-3)
    assert row["percent_of_floor"] == pytest.approx(100 * row["floor_ms"] / row["step_ms"], rel=0.1)
    assert "products_ms" not in row
    assert engine.prefill(2, 7, 1)["percent_of_floor"] > 0
    arriving = engine.trace(Trace.of((3, 2), (3, 2, 0.01)), 1)
    assert "floor_seconds" not in arriving  # who waits for arrivals cannot be at fault


# --- ablation -------------------------------------------------------------------------------------


def test_every_ablation_is_a_setting_or_an_operation_that_exists():
    operations = set(OPERATIONS)
    for row in ABLATIONS:
        changed = replace(EngineConfig(), **row.engine)
        assert changed != EngineConfig() or row.twins, row.name
        assert set(row.twins) <= operations
    assert len({row.name for row in ABLATIONS}) == len(ABLATIONS)


def test_twins_that_ask_the_device_are_in_no_ablation():
    """They cannot be recorded in a graph, so a row would measure two things."""
    asking = {"paged_decode", "paged_prefill", "conv_prefill", "scan_prefill"}
    assert not asking & {name for row in ABLATIONS for name in row.twins}


def test_the_rows_of_a_cpu_are_those_that_make_a_difference_there():
    assert [row.name for row in chosen([], CPU)] == ["nothing", "float32-state"]
    assert [row.name for row in chosen(["float32-state"], CPU)] == ["nothing", "float32-state"]
    with pytest.raises(EngineError, match="'graphs' needs a CUDA GPU"):
        chosen(["graphs"], CPU)
    with pytest.raises(EngineError, match="'speed' is not known; there are: graphs, overlap"):
        chosen(["speed"], CPU)


def test_one_set_of_weights_serves_all_rows(monkeypatch):
    config, load = open_model("tiny", None, SMALL)
    loads, cores = [], []

    def counted(*place):
        loads.append(place)
        return load(*place)

    def step_seconds(core, batch, *_):
        cores.append(core)
        return [0.01 * len(cores)] * 3

    monkeypatch.setattr("plamo_ref.bench.ablation.step_seconds", step_seconds)
    rows = [NOTHING, replace(NOTHING, name="qk", twins=("qk_norm_rope_write",))]
    rows.append(replace(NOTHING, name="overlap", engine={"overlap": True}))
    lengths = {"prompt": 3, "output": 3, "repeat": 3}
    made = list(ablate(config, SMALL, counted, rows, [1, 2], **lengths))
    assert made[1]["runs_ms"] == [20.0] * 3
    assert len(loads) == 1
    assert [(r["off"], r["batch"], r["buys_ms"], r["buys_percent"]) for r in made] == [
        ("nothing", 1, 0.0, 0.0),
        ("nothing", 2, 0.0, 0.0),
        ("qk", 1, 20.0, 200.0),
        ("qk", 2, 20.0, 100.0),
        ("overlap", 1, 40.0, 400.0),
        ("overlap", 2, 40.0, 200.0),
    ]
    assert cores[0].runner.model.embedding is cores[4].runner.model.embedding
    assert cores[4].config.overlap
    assert not cores[0].config.overlap


def test_twins_take_the_place_of_single_operations():
    marked = TORCH.but(name="own", qk_norm_rope_write=print, add_norm=print)
    table = with_twins(marked, ("add_norm",))
    assert table.add_norm is TORCH.add_norm
    assert table.qk_norm_rope_write is print
    assert table.name == "own"  # a step with it can still be recorded
    config, load = open_model("tiny", None, SMALL)
    weights = Weights(load)
    weights.twins = ("add_norm",)
    model = weights(marked, torch.float32, CPU)
    assert model.ops.add_norm is TORCH.add_norm
    assert model.config == config


# --- the process ----------------------------------------------------------------------------------


def test_a_process_that_fails_says_why():
    with pytest.raises(StartupError, match="found nothing of that name"):
        time_startup("/nowhere", None, {}, compare=False)


def test_the_compared_start_compiles_when_launched():
    rows = time_startup("tiny", None, {"memory_bytes": 10_000_000}, compare=True)
    assert [(row["cache"], row["precompile"]) for row in rows] == [
        ("cold", True),
        ("warm", True),
        ("cold", False),
    ]
    for row in rows:
        parts = row["import_s"] + row["open_engine_s"] + row["first_request_s"]
        assert row["to_first_token_s"] == pytest.approx(parts, abs=0.01)


@pytest.mark.parametrize("command", [["kernels"], ["ablation", "--only", "graphs"]])
def test_what_needs_a_gpu_says_so_in_one_line(command, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["bench", *command]) == 2
    assert "CUDA GPU" in capsys.readouterr().err


def test_measuring_imports_nothing_of_the_server(tmp_path):
    """A machine to measure on may have torch and little else."""
    barred = ("fastapi", "uvicorn", "zmq", "msgspec", "llguidance", "jinja2", "prometheus_client")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        f"BARRED = {barred!r}\n"
        "class Bar:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in BARRED:\n"
        "            raise ImportError(name + ' is barred')\n"
        "sys.meta_path.insert(0, Bar())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    words = ["decode", "--batches", "1", "--output-len", "2", "--repeat", "1"]
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "plamo_ref", "bench", *words, "--json", result],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(result.read_text())["data"][0]["batch"] == 1
    refused = subprocess.run(
        [sys.executable, "-c", "import zmq"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "zmq is barred" in refused.stderr


def test_products_in_e4m3_are_not_counted_at_another_kinds_rate():
    """Where arithmetic would bind, the floor of fp8 weights is one of bytes."""
    slow = replace(H200, product=1e12)
    plain, fp8 = SHAPES["8b"], replace(SHAPES["8b"], quantization="fp8")
    weight_only = replace(plain, quantization="fp8_weight_only")
    few = decode_floor(fp8, 64, 256, 2, 4, replace(slow, product=1e18))
    assert decode_floor(fp8, 64, 256, 2, 4, slow) < 0.2 * decode_floor(plain, 64, 256, 2, 4, slow)
    assert decode_floor(fp8, 64, 256, 2, 4, slow) >= few
    assert decode_floor(weight_only, 64, 256, 2, 4, slow) > 64 * 15e9 / 1e12
    assert prefill_floor(fp8, 1, 512, 2, slow) < 0.5 * prefill_floor(plain, 1, 512, 2, slow)
    given = (Trace.of((9, 5), (3, 7)), SMALL, 2, 4, slow)
    assert trace_floor(fp8, *given) < 0.5 * trace_floor(plain, *given)


def test_products_in_e4m3_have_their_own_rate_where_it_was_measured():
    """Twice the rate: half the time of the projections, and what is not in e4m3 as before."""
    slow = replace(H200, product=1e12, fp8_product=2e12)
    plain, fp8 = SHAPES["8b"], replace(SHAPES["8b"], quantization="fp8")
    saved = 512 * linear_flops(plain) / 2e12
    whole, least = (prefill_floor(config, 1, 512, 2, slow) for config in (plain, fp8))
    assert whole - least == pytest.approx(saved)
    given = (Trace.of((9, 5), (3, 7)), SMALL, 2, 4, slow)
    tokens = 9 + 3 + 4 + 6  # each output but the last is computed as well
    saved = tokens * linear_flops(plain) / 2e12
    assert trace_floor(plain, *given) - trace_floor(fp8, *given) == pytest.approx(saved, rel=0.02)
    assert slow.row()["fp8_tflop_per_s"] == 2
    assert "fp8_tflop_per_s" not in H200.row()
