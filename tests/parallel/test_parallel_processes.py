"""Ranks as processes, over gloo: the ids and logits of one process, and a bounded end.

Invariant tested: an `LLM` that two or four processes share gives what one gives, within 1e-10 in
float64, through preemptions, found prefixes, cut prompts and aborts; a rank that dies, or whose
driver does, leaves nobody waiting and nothing running.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from engines import CONFIGS

from plamo_ref import LLM, SamplingParams
from plamo_ref.batch import MambaCache
from plamo_ref.engine.config import EngineError
from plamo_ref.proof.drafting import numbers_of
from plamo_ref.proof.interrupts import interrupted
from plamo_ref.proof.lab import random_tensors
from plamo_ref.weights.checkpoint import save

SMALL = {"dtype": "float64", "device": "cpu", "block_size": 4, "max_num_seqs": 3}
SMALL |= {"max_num_batched_tokens": 12, "enable_prefix_caching": True, "record": True}
ONE, FOUR = 60_000, 22_000  # bytes for the cache, of each rank; so little that some are preempted
Lived = tuple[list[list[int]], dict[tuple[str, int], torch.Tensor], int]
PATIENCE = 30.0  # of a test, with a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid with two KV heads, so that four ranks have copies, and 61 tokens."""
    config = replace(CONFIGS["mamba, sliding and full"], mamba_num_heads=4, vocab_size=61)
    folder = tmp_path_factory.mktemp("shared")
    save(folder, config, random_tensors(config), dtype=torch.float32)
    return folder


def lived(llm: LLM) -> Lived:
    """Ids of everything said in some calls, all logits, and how many were preempted."""
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def observe(record, requests, logits):
        for request, number, row in zip(requests, numbers_of(requests), logits, strict=True):
            seen[request.request_id, number] = row.clone()

    llm.core.observers.append(observe)
    base = list(range(1, 22))
    prompts = [base, [7, 8], [*base, 9, 9], base[:12], [5] * 30]
    params = [
        SamplingParams(temperature=0, max_tokens=15, ignore_eos=True),
        SamplingParams(seed=4, max_tokens=20, ignore_eos=True, logprobs=3, top_p=0.9),
        SamplingParams(seed=5, max_tokens=12, repetition_penalty=1.5, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=2, ignore_eos=True),
        SamplingParams(seed=6, max_tokens=7, n=2, ignore_eos=True),
    ]
    said = []
    for _ in range(2):  # the second time much is found
        outputs = llm.generate(prompts, params, use_tqdm=False)
        said += [list(one.token_ids) for output in outputs for one in output.outputs]
        pieces = llm.stream([[3, 3, 3, *base]], params[0])
        said.append([next(pieces).token_id for _ in range(3)])
        pieces.close()  # which aborts it
    preempted = sum(len(record.preempted) for record in llm.records)
    found = sum(n for record in llm.records for _, n, _ in record.found)
    assert found > 0
    llm.core.cache.check_integrity()
    return said, seen, preempted


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[tuple[LLM, Lived]]:
    with LLM(folder, **SMALL, memory_bytes=ONE) as llm:
        yield llm, lived(llm)


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.children() if "plamo_ref.parallel.worker" in p.cmdline()]


@pytest.mark.parametrize(("size", "stages"), [(4, 1), (2, 2)])
def test_four_processes_give_what_one_gives(folder, one, size, stages):
    sizes = {"tensor_parallel_size": size, "pipeline_parallel_size": stages, "overlap": stages > 1}
    if stages == 1:  # one process has none: tokens are the same, and so are logits
        sizes["speculative_config"] = {"num_speculative_tokens": 3, "prompt_lookup_min": 1}
    whole, (expected, truth, _) = one
    with LLM(folder, **SMALL, memory_bytes=FOUR, **sizes) as llm:
        assert len(ranks_of(psutil.Process())) == 3
        said, logits, preempted = lived(llm)
        shares = [share for record in llm.records for share in record.scheduled]
        assert any(share.drafted for share in shares) == (stages == 1)
        check_plan(llm, whole, size, stages)
        with pytest.raises(EngineError, match="hidden_states needs the whole model in one"):
            llm.hidden_states([[1, 2]])
        with pytest.raises(EngineError, match="it has one group at a time; close the other LLM"):
            LLM(folder, **SMALL, memory_bytes=ONE, tensor_parallel_size=2)
        assert len(ranks_of(psutil.Process())) == 3
    assert ranks_of(psutil.Process()) == []
    assert not torch.distributed.is_initialized()
    assert said == expected
    assert preempted > 0
    common = logits.keys() & truth.keys()
    assert len(common) > 60
    worst = max(float((logits[key] - truth[key]).abs().max()) for key in common)
    assert worst < 1e-10


def check_plan(llm: LLM, whole: LLM, size: int, stages: int) -> None:
    """Memory is that of a rank. Four ranks have a KV head each, and there are two of them; of two
    stages each has one of the two Mamba layers, one a full layer and the other one the other."""
    heads = size * stages  # a state slot: by heads, then by layers
    assert llm.plan.slot_bytes * heads == whole.plan.slot_bytes
    assert {kind: n * 2 for kind, n in llm.plan.block_bytes.items()} == whole.plan.block_bytes
    assert llm.plan.total_bytes <= FOUR
    states = [c for c in llm.core.runner.caches if isinstance(c, MambaCache)]
    assert len(states) == 2 // stages
    assert states[0].ssm.shape[:2] == (llm.plan.num_slots, 4 // size)


# --- ends -----------------------------------------------------------------------------------------


def until(is_so, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.02)


def test_an_interrupt_leaves_the_ranks_alike_and_a_rank_that_is_killed_ends_the_engine():
    """Of the embedded model, which two ranks share: ids as in one process, until one is killed."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts, settings = ["吾輩は猫", "To be, or"], {"device": "cpu", "memory_bytes": 8 << 20}
    with LLM("tiny", dtype="float64", **settings) as one:
        expected = [o.outputs[0].token_ids for o in one.generate(prompts, params, use_tqdm=False)]
    with LLM("tiny", dtype="float64", **settings, tensor_parallel_size=2) as two:
        outputs = two.generate(prompts, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in outputs] == expected
        for point in (150, 700, 1900):  # in the middle of a step, wherever that is
            with interrupted(point) as interrupter, suppress(KeyboardInterrupt):
                two.generate(prompts, params, use_tqdm=False)
            assert interrupter.where is not None
            outputs = two.generate(prompts, params, use_tqdm=False)
            assert [o.outputs[0].token_ids for o in outputs] == expected
        (rank,) = ranks_of(psutil.Process())
        pieces = two.stream(prompts, SamplingParams(max_tokens=5000, ignore_eos=True))
        next(pieces)
        rank.kill()
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"^rank 1 of 2 failed: .*signal 9\); this engine is"):
            list(pieces)
        assert time.monotonic() - started < PATIENCE
        with pytest.raises(EngineError, match="rank 1 of 2 failed"):
            two.generate(prompts, params, use_tqdm=False)
    assert ranks_of(psutil.Process()) == []
    assert not torch.distributed.is_initialized()


DRIVER = """
import sys
from plamo_ref import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], device="cpu", memory_bytes=1_000_000, tensor_parallel_size=2)
    for piece in llm.stream([[1, 2]], SamplingParams(max_tokens=100_000, ignore_eos=True)):
        print("token", flush=True)
"""


def test_a_killed_driver_leaves_no_rank_behind(folder, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"token\n"
        (rank,) = ranks_of(psutil.Process(driver.pid))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    until(lambda: not rank.is_running(), "the rank ends")


def test_a_model_that_cannot_be_read_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(EngineError, match=r"tensor_parallel_size=4: num_attention_heads \(6\)"):
        LLM("tiny", device="cpu", tensor_parallel_size=4)
    assert ranks_of(psutil.Process()) == []
