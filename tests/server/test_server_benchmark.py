"""The benchmark of the server: it is run rarely, on machines that are lent; it has to work then.

Invariant tested: what it reports is there and possible; a shape without weights is served with as
many ids as the shape has.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.source import open_source
from plamo_ref.text.tokenizer import Plamo2Tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("serving")


def test_a_shape_is_a_folder_without_weights_whose_every_id_has_a_text(serving):
    with serving.model_folder("", "1b") as (folder, engine):
        source = open_source(folder, engine["load_format"])
        tokenizer = Plamo2Tokenizer.from_folder(folder)
        assert not list(Path(folder).glob("*.safetensors"))
    assert source.config == SHAPES["1b"]
    assert tokenizer.vocab_size == source.config.vocab_size
    texts = [tokenizer.decode([token]) for token in range(5120, tokenizer.vocab_size)]
    assert len(set(texts)) == len(texts)
    assert {len(text) for text in texts} == {4}


def test_overhead_and_load_are_measured(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, BENCHMARKS / "server.py", "overhead", "load", "--json", result]
    sizes = [
        "--requests",
        "4",
        "--repeats",
        "1",
        "--output-len",
        "6",
        "--rates",
        "16",
        "--seconds",
        "0.5",
    ]
    subprocess.run([*command, *sizes], check=True, timeout=200, stdout=subprocess.DEVNULL)
    rows = json.loads(result.read_text())["data"]
    ways = [row for row in rows if row["what"] == "overhead"]
    assert [row["way"] for row in ways] == ["offline", "whole", "streamed"]
    for row in ways:
        assert row["output_tokens_per_s"] == pytest.approx(24 / row["seconds"], rel=0.01)
        assert row["overhead"] == pytest.approx(row["seconds"] / ways[0]["seconds"] - 1, abs=1e-2)
        assert row["engine_cpu_us_per_token"] > 0
    (load,) = [row for row in rows if row["what"] == "load"]
    assert (load["requests"], load["failed"]) == (8, 0)
    assert 0 < load["ttft_ms"]["p50"] <= load["ttft_ms"]["p99"] < load["latency_ms"]["p99"]
    assert load["itl_ms"]["p50"] > 0
