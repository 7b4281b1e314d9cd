"""Sums that their readers make, by two processes that share memory, in Triton's interpreter.

Invariant tested: each rank gets, bit by bit, what adding in one process gives, turn after turn and
whoever is late; a model whose kernels add says what one says whose ranks add; who is left alone is
let go.
"""

import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import triton_table
from plamo_ref.kernels.norm.triton import add_norm
from plamo_ref.kernels.norm.triton_peers import peer_add_norm, peer_sum
from plamo_ref.kernels.table import Kernels
from plamo_ref.parallel import peers
from plamo_ref.parallel.fused import FusedSums
from plamo_ref.parallel.group import TorchGroup
from plamo_ref.parallel.model import load_random
from plamo_ref.proof.lab import lab_config, lab_plan, least_blocks
from plamo_ref.sampling import SamplingParams

CPU, F32 = torch.device("cpu"), torch.float32
CONFIG = lab_config(
    num_hidden_layers=2, full_attention_idx=(), hidden_size_per_head=16, mamba_num_heads=4
)
ROWS = 4  # more of them are added by the ranks
PATIENCE = 120


def test_two_processes_have_the_sums_of_one_and_a_model_on_them_says_the_same(tmp_path: Path):
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    ranks = mp.spawn(live, (tmp_path / "meeting", results), nprocs=2, join=False)
    end = time.monotonic() + PATIENCE
    while not ranks.join(timeout=1):  # raises what one of them raises
        assert time.monotonic() < end, "a rank waits for ever"
    assert [results.get() for _ in range(2)] == ["done", "done"]


def live(rank: int, meeting: Path, results: Any) -> None:
    """One of the ranks."""
    peers.MOST_ROWS = ROWS
    group = TorchGroup.join(meeting, rank, 2, 1, CPU)
    plain = said(group, triton_table())  # before they have met, so the ranks add
    fused = FusedSums.of(CONFIG, group, triton_table())
    assert group.peers is not None
    for mine, other in zip(said(group, fused), plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    counted = group.peers.memory[: 2 * ROWS].view(2, ROWS).tolist()
    sums = 2 * CONFIG.num_hidden_layers + len(CONFIG.layers_of("mamba"))
    assert counted[rank] == [3 * sums, sums, sums, 0]  # of 6 tokens the ranks add
    check_sums(group.peers, rank)
    check_places(group.peers, rank)
    check_let_go(group.peers, rank)
    results.put("done")
    group.leave()


def said(group: TorchGroup, ops: Kernels) -> list[Tensor]:
    """Logits of steps of 3 tokens, 1, 6 and 1. Both ranks have an engine, and both do the same."""
    model = load_random(CONFIG, 5, group, ops, F32, CPU)
    shape = {"block_size": 4, "max_num_seqs": 1}
    plan = lab_plan(CONFIG, blocks=least_blocks(CONFIG, 4, 40), slots=1, **shape)
    engine = EngineConfig(dtype="float32", device="cpu", **shape)
    core = new_core(ModelRunner(model, plan, F32), plan, engine)
    logits: list[Tensor] = []
    core.observers.append(lambda record, requests, rows: logits.append(rows.clone()))
    for prompt in ([5, 9, 33], [7, 12, 50, 2, 2, 17]):
        core.add(prompt, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    while core.has_work:
        core.step()
    return logits


def numbers(rank: int, seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 2 + rank))


def check_sums(met: peers.Peers, rank: int) -> None:
    """Of one part and of several, of changing rows; one rank or the other is late."""
    gains = numbers(0, 98, 32), numbers(0, 99, 32)
    for turn in range(12):
        rows, parts = 1 + turn % ROWS, 1 + turn % 2
        both = [numbers(each, turn, parts, rows, 32) for each in range(2)]
        total = sum((part.sum(0) if parts > 1 else part[0] for part in both), torch.zeros(1))
        if turn % 3 == rank:
            time.sleep(0.05)
        residual, mine = numbers(0, turn + 50, rows, 32), both[rank]
        found = peer_add_norm(residual, mine, *gains, 1e-6, memories=met.memories)
        expected = add_norm(residual, total[None], *gains, 1e-6)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        narrow = peer_sum(mine[:, :, :10], memories=met.memories)
        assert torch.equal(narrow, total[None, :, :10])


def check_places(met: peers.Peers, rank: int) -> None:
    """A row's numbers are put at its own place in one half, whatever their dtype."""
    numbers = met.memories.numbers(torch.int32).view(2, ROWS, -1)
    for dtype, row in ((F32, 3), (torch.bfloat16, 3), (torch.bfloat16, 0), (F32, 2)):
        before = numbers.clone()
        turn = int(met.memory[rank * ROWS + row]) + 1
        x = torch.full((1, row + 1, met.memories.pitch), float(turn + 1), dtype=dtype)
        peer_sum(x, memories=met.memories)
        changed = (numbers != before).any(2).nonzero().tolist()
        assert [turn % 2, row] in changed
        assert max(place for _, place in changed) == row
        assert len(changed) == row + 1


def check_let_go(met: peers.Peers, rank: int) -> None:
    """Rank 0 waits for a rank that is gone."""
    if rank == 1:
        return
    threading.Timer(0.3, met.let_go).start()
    for _ in range(2):  # and it never waits again
        peer_sum(torch.ones(1, 3, 8), memories=met.memories)
