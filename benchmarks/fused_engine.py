"""An engine whose kernels add what two ranks have, on one GPU: `python benchmarks/fused_engine.py`.

    python benchmarks/fused_engine.py [--tokens 24] [--requests 5] [--device cuda:0]

NCCL refuses two ranks on one GPU, so what is not fused goes through the host here, nothing is
recorded, and nothing is timed. Each of two processes has its half of the embedded model and the
whole engine, and both do the same. In float32 they must say with fused sums what they say with
plain ones, and what one process says; some prompts have more rows than are fused. `--device cpu
--tokens 2 --requests 2` rehearses it in Triton's interpreter (TRITON_INTERPRET=1).

Invariant: exits with 1 if a token differs, or a rank comes to no end within `--timeout` seconds.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from plamo_ref.bench.shapes import open_model
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import build_runner, new_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.kernels.choice import can_overlap
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model
from plamo_ref.parallel.cut import of_rank
from plamo_ref.parallel.driver import Loader, cut
from plamo_ref.parallel.fused import FusedSums
from plamo_ref.parallel.group import TorchGroup
from plamo_ref.parallel.peers import Peers
from plamo_ref.sampling import SamplingParams

CPU = torch.device("cpu")


class OneCard(TorchGroup):
    """Ranks that share a GPU: what they do together goes through the host."""

    card: torch.device

    def add(self, x: Tensor) -> Tensor:
        return x.copy_(super().add(x.cpu()))

    def gather(self, x: Tensor) -> Tensor:
        return super().gather(x.cpu()).to(x.device)

    def meet(self, width: int) -> Peers:
        self.peers = Peers(self._exchange, self.rank, self.size, width, self.card)
        return self.peers


def settings(device: str) -> EngineConfig:
    return EngineConfig(
        device=device,
        dtype="float32",
        memory_bytes=64 << 20,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        cuda_graphs=False,
        precompile=False,
        overlap=False,
        enable_prefix_caching=False,
    )


def said(config: Plamo2Config, load: Loader, agree: Any, args: argparse.Namespace) -> list[Any]:
    """Ids of some requests; prompts of 3 to 400 tokens."""
    engine = settings(args.device)
    runner, plan = build_runner(config, engine, load, agree)
    core = new_core(runner, plan, engine)
    params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    rng, requests = torch.Generator().manual_seed(7), []
    for number in range(args.requests):
        length = (3, 17, 60, 400)[number % 4]
        ids = torch.randint(10, config.vocab_size, (length,), generator=rng).tolist()
        requests.append(core.add(ids, params))
    while core.has_work:
        core.step()
    return [list(request.output_ids) for request in requests]


def live(rank: int, args: argparse.Namespace, meeting: str, results: Any) -> None:
    """One rank: with plain sums, then with fused ones."""
    group = OneCard.join(Path(meeting), rank, 2, 1, CPU)
    group.card = torch.device(args.device)
    if group.card.type == "cuda":
        torch.cuda.set_device(group.card)
    config, load = open_model("tiny", None, settings(args.device))

    def load_part(
        ops: Kernels, dtype: torch.dtype, device: torch.device, fused: bool
    ) -> Plamo2Model:
        if fused:
            ops = FusedSums.of(config, group, ops, pdl=can_overlap(device))
        return cut(load, group)(ops, dtype, device)

    part = of_rank(config, rank, 2)
    found = [
        said(part, partial(load_part, fused=fused), group.least, args) for fused in (False, True)
    ]
    assert group.peers is not None
    counted = int(group.peers.memory[: 2 * group.peers.memories.rows].max())
    results.put((rank, found, counted))
    group.least(0)  # nobody leaves before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--timeout", type=float, default=240)
    args = parser.parse_args()
    context = mp.get_context("spawn")
    results, found = context.SimpleQueue(), list[Any]()
    with tempfile.TemporaryDirectory() as folder:
        given = (args, str(Path(folder) / "meeting"), results)
        ranks = mp.spawn(live, given, nprocs=2, join=False)
        end = time.monotonic() + args.timeout
        while len(found) < 2 and time.monotonic() < end:
            if not results.empty():
                found.append(results.get())
            elif any(process.exitcode for process in ranks.processes):
                break
            time.sleep(0.05)
        for process in ranks.processes:
            process.join(5 if len(found) == 2 else 0)
            process.kill()
    config, load = open_model("tiny", None, settings(args.device))
    one = said(config, load, int, args)
    good = len(found) == 2
    for rank, (plain, fused), counted in sorted(found):
        print(f"rank {rank}: {counted} fused sums of a row", flush=True)
        print(f"  plain sums as one process: {plain == one}, fused: {fused == one}", flush=True)
        good = good and plain == fused == one and counted > 0
    print("all tokens alike" if good else "WRONG, or not done", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
