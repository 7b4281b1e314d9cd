"""`plamo-ref bench`: workloads that are what they say, results that can be redone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from plamo_ref.bench import prefix, steps, workloads
from plamo_ref.bench.report import command
from plamo_ref.bench.scheduling import time_decisions
from plamo_ref.bench.shapes import SHAPES, open_core
from plamo_ref.bench.simulator import Trace
from plamo_ref.cli import main
from plamo_ref.commands.bench import bench
from plamo_ref.engine.config import EngineConfig


def test_the_mixed_workload_is_the_recorded_one():
    jobs = Trace.mixed(256).requests
    assert [(j.prompt_len, j.output_len) for j in jobs[:3]] == [(836, 326), (983, 367), (569, 113)]
    assert sum(j.prompt_len for j in jobs) == 139_318
    assert sum(j.output_len for j in jobs) == 69_675


def test_random_shapes_have_the_published_sizes():
    assert SHAPES["1b"].num_parameters == 1_291_441_920
    assert SHAPES["8b"].num_parameters == 9_118_372_864
    assert SHAPES["translate"].num_parameters == 19_056_470_016 // 2


def test_a_run_generates_every_token_asked_for_and_leaves_the_engine_clean():
    core, plan = open_core("tiny", None, EngineConfig(memory_bytes=4_000_000, block_size=4))
    result = workloads.run(core, Trace.of((9, 5), (3, 7, 0.02)))
    assert result.output_tokens == 12
    assert result.prompt_tokens == 12
    assert len(result.ttft) == len(result.itl) == 2
    assert all(seconds > 0 for seconds in result.ttft)
    assert not core.requests
    assert all(pool.num_used == 0 for pool in core.cache.blocks.values())
    assert plan.total_bytes <= 4_000_000


def test_a_run_finds_nothing_of_an_earlier_one():
    engine = EngineConfig(memory_bytes=4_000_000, block_size=4, enable_prefix_caching=True)
    core, _ = open_core("tiny", None, engine)
    for _ in range(2):
        workloads.run(core, Trace.of((9, 5), (30, 7)))
    counts = core.queues.prefix.counts
    assert (counts.asked, counts.found) == (2 * 39, 0)


def test_percentiles_are_nearest_ranks_in_milliseconds():
    found = workloads.percentiles([i / 1000 for i in range(1, 101)])
    assert found == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert workloads.percentiles([0.001, 0.002]) == {"p50": 1.0, "p90": 2.0, "p99": 2.0}
    assert workloads.percentiles([]) == {}


def test_with_room_for_all_little_more_is_computed_than_must_be():
    """The second of a crowd shows where it parts from the first, so it computes all of it."""
    engine = EngineConfig(
        device="cpu",
        memory_bytes=1 << 25,
        block_size=4,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        enable_prefix_caching=True,
    )
    core, _ = open_core("tiny", None, engine)
    row = prefix.crowd(core, 0, 0.02, 2)
    assert row["computed_tokens"] == row["least_tokens"] + 60
    with_interval, _ = open_core("tiny", None, replace(engine, photograph_interval=16))
    row = prefix.crowd(with_interval, 0, 0.02, 2)  # … from the last of 16, 32 and 48 tokens on
    assert row["computed_tokens"] == row["least_tokens"] + 60 - 48 < 1.05 * row["least_tokens"]
    row = prefix.chats(core, 0, 0.02, 3)
    # Of each answer the last token is computed once more: nothing came behind it at the time.
    assert row["computed_tokens"] <= row["least_tokens"] + 4 * 32 + 20
    assert row["prompt_tokens"] == sum(
        32 * (20 + 3 * turn + 3 * (turn - 1)) for turn in range(1, 6)
    )


def test_a_turn_of_one_chat_computes_its_own_text_alone():
    engine = EngineConfig(
        device="cpu",
        memory_bytes=1 << 25,
        block_size=4,
        max_num_batched_tokens=256,
        enable_prefix_caching=True,
    )
    core, _ = open_core("tiny", None, engine)
    row = prefix.one_chat(core, 0, 0.02, 3)
    # Five times three tokens, the first time with 20 before them; of each answer the last token.
    assert row["computed_tokens"] == 20 + 5 * 3 + 4
    assert len(row["turn_ttft_ms"]) == 5
    assert row["fifth_ttft_ms"] == row["turn_ttft_ms"][-1] > 0 < row["alone_ttft_ms"]


def test_the_crowd_is_the_recorded_one():
    assert prefix.tail_lens()[:3] == [217, 129, 287]
    assert sum(prefix.tail_lens()) == 204_521 - 64 * 3000


def test_timing_decisions_needs_no_model():
    row = time_decisions(3)
    assert row["running"] == 3
    assert row["schedule_ms"] > 0


@pytest.fixture(scope="module")
def ceilings_are_measured_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "measure_ceilings", cache(steps.measure_ceilings))
        yield


@pytest.mark.usefixtures("ceilings_are_measured_once")
@pytest.mark.parametrize(
    "command",
    [
        ["throughput", "--requests", "2", "--prompt-len", "5", "--output-len", "3"],
        ["latency", "--repeat", "1", "--prompt-len", "5", "--output-len", "3"],
        ["decode", "--batches", "1,2", "--prompt-len", "5", "--output-len", "4", "--repeat", "1"],
        ["prefill", "--lengths", "9", "--repeat", "1", "--no-products"],
        ["mixed", "--requests", "3", "--scale", "0.01", "--both"],
        ["prefix", "--scale", "0.004", "--repeat", "1", "--both"],
        ["scheduler", "--running", "1,2"],
        ["startup"],
        ["ablation", "--only", "float32-state", "--batches", "2", "--output-len", "3"],
    ],
    ids=lambda command: command[0],
)
def test_every_benchmark_prints_a_table_and_writes_what_redoes_it(command, tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main(["bench", *command, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert command[0] in capsys.readouterr().out
    assert result["versions"]["torch"] == torch.__version__
    assert result["machine"]
    assert result["command"].startswith("plamo-ref")
    rows = {"throughput": 1, "latency": 1, "prefill": 1, "prefix": 2 * 4}
    assert len(result["data"]) == rows.get(command[0], 2)


def test_a_trace_file_is_run(tmp_path, capsys):
    path = tmp_path / "trace.json"
    Trace.of((4, 2)).write(path)
    assert main(["bench", "trace", str(path)]) == 0
    assert "output_tokens" in capsys.readouterr().out


def test_a_broken_trace_file_is_one_line_and_exit_code_2(tmp_path, capsys):
    path = tmp_path / "trace.json"
    path.write_text('{"requests": [{"prompt_len": 0, "output_len": 2}]}')
    assert main(["bench", "trace", str(path)]) == 2
    assert "not a trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["throughput --requests 0", "latency --repeat 0", "mixed --requests 0", "prefill --repeat 0"],
)
def test_nothing_to_measure_is_one_line_and_exit_code_2(command, capsys):
    assert main(["bench", *command.split()]) == 2
    assert "x>=1" in capsys.readouterr().err


@pytest.mark.parametrize("place", [["--json", "x.json"], ["--json=x.json"]])
def test_where_a_result_goes_is_no_part_of_its_command(place, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plamo-ref", "bench", "latency", *place, "--seed", "1"])
    assert command() == "plamo-ref bench latency --seed 1"


def test_every_shape_can_be_asked_for():
    shape = next(each for each in bench.commands["decode"].params if each.name == "shape")
    assert set(shape.type.choices) == set(SHAPES)
