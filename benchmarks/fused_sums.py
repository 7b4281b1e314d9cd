"""Sums over ranks, made by the kernel that reads them: `python benchmarks/fused_sums.py`.

    python benchmarks/fused_sums.py [--ranks 2] [--rows 1,32,256] [--width 4096] [--device cuda]
        [--sums 80] [--repeat 20] [--json FILE]

With one GPU, two processes share it: that proves that memory is shared and that all sums are right,
and says nothing about time (they take turns). With as many GPUs as ranks, NCCL's sum and the plain
`add_norm` are timed as well, both in recorded steps of `--sums` sums, each of which needs the last
one. First all ranks check hundreds of sums of changing sizes, bit for bit among themselves and
against sums of a single process, launched one by one and recorded, while one rank or the other is
late. `--device cpu` rehearses this on Triton's interpreter (TRITON_INTERPRET=1).

Invariant: exits with 1 if any sum was wrong, or a rank came to no end within `--timeout` seconds.
"""

import argparse
import os
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from plamo_ref.bench.report import report, write
from plamo_ref.kernels.choice import can_overlap
from plamo_ref.kernels.norm.triton import add_norm
from plamo_ref.kernels.norm.triton_peers import peer_add_norm, peer_sum
from plamo_ref.parallel.peers import Peers

EPS = 1e-6
NARROW = 640  # of B, C and dt together


def exchange(mine: bytes) -> list[bytes]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


class Lab:
    """One rank and its inputs; those of the others can be made here too."""

    def __init__(self, rank: int, args: argparse.Namespace) -> None:
        self.rank, self.size, self.width = rank, args.ranks, args.width
        alone = args.device == "cuda" and torch.cuda.device_count() < args.ranks
        number = 0 if alone else rank
        self.device = torch.device(args.device, number if args.device == "cuda" else None)
        self.on_gpu = self.device.type == "cuda"
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.pdl = self.on_gpu and can_overlap(self.device)
        self.peers = Peers(exchange, rank, args.ranks, args.width, self.device)
        self.options = {"memories": self.peers.memories, "pdl": self.pdl}
        self.gains = self.noise(0, args.width, seed=1)[0], self.noise(0, args.width, seed=2)[0]

    def noise(self, rank: int, *shape: int, seed: int, dtype: Any = None) -> Tensor:
        """The same on every rank, for each `rank` and seed."""
        rng = torch.Generator().manual_seed(seed * 64 + rank)
        shape = shape if len(shape) > 1 else (1, *shape)
        return torch.randn(shape, generator=rng).to(self.device, dtype or self.dtype)

    def late(self, seed: int) -> None:
        """Some rank has other things to do, now and then."""
        if seed % 5 == self.rank and self.on_gpu:
            x = torch.ones(2048, 2048, device=self.device)
            for _ in range(seed % 7):
                x = x @ x
        elif seed % 5 == self.rank:
            time.sleep(0.002)

    def parts(self, rank: int, rows: int, seed: int, width: int) -> Tensor:
        """Several wide ones, or one."""
        count = 1 + 3 * (seed % 2)
        dtype = torch.float32 if count > 1 else self.dtype
        return self.noise(rank, count, rows, width, seed=seed, dtype=dtype)

    def summed(self, rows: int, seed: int, width: int) -> Tensor:
        """What all ranks have together, in the order in which they are added."""
        total = torch.zeros((rows, width), device=self.device)
        for rank in range(self.size):
            parts = self.parts(rank, rows, seed, width)
            own = parts[0].float()
            for part in parts[1:]:
                own = own + part.float()
            total = total + own.to(parts.dtype).float()
        return total

    def check(self, seed: int) -> bool:
        """One sum of each kind."""
        rows = (1, 7, 32, self.peers.memories.rows)[seed % 4] if self.on_gpu else (1, 3)[seed % 2]
        residual = self.noise(0, rows, self.width, seed=seed + 1000)
        mine = self.parts(self.rank, rows, seed, self.width)
        narrow = self.parts(self.rank, rows, seed + 500, min(NARROW, self.width))
        self.late(seed)
        found = peer_add_norm(residual, mine, *self.gains, EPS, **self.options)
        found += (peer_sum(narrow, **self.options),)
        x = self.summed(rows, seed, self.width).to(self.dtype)
        expected = add_norm(residual, x[None], *self.gains, EPS)
        expected += (self.summed(rows, seed + 500, narrow.shape[-1]).to(narrow.dtype)[None],)
        same = [torch.equal(*both) for both in zip(found, expected, strict=True)]
        if not all(same):
            print(f"rank {self.rank}, sum {seed}, {rows} rows: {same}", flush=True)
        return all(same)

    def check_recorded(self, rows: int, replays: int) -> bool:
        """Recorded sums, each of the last one's stream, replayed with new inputs."""
        chain, x = (
            self.chain(rows, 9, fused=True),
            self.noise(self.rank, 1, rows, self.width, seed=3),
        )
        plain = [self.noise(rank, 1, rows, self.width, seed=3) for rank in range(self.size)]
        held = x.clone()
        replay = recorded(lambda: chain(held), self.device)
        good = True
        for turn in range(replays):
            self.late(turn)
            held.copy_(x * (turn + 1))
            found = replay().clone()
            together = torch.stack([each[0].float() * (turn + 1) for each in plain]).to(self.dtype)
            stream = torch.zeros_like(together[0])
            total = together.float().sum(0).to(self.dtype)
            for _ in range(9):
                stream, _ = add_norm(stream, total[None], *self.gains, EPS)
            good = good and torch.equal(found, stream)
        return good

    def check_let_go(self) -> bool:
        """Nobody else comes to this sum; who waits is let go, and comes to an end."""
        x = self.noise(0, 1, 4, self.width, seed=1)
        threading.Timer(0.5, self.peers.let_go).start()
        started = time.perf_counter()
        peer_sum(x, **self.options)
        if self.on_gpu:
            torch.cuda.synchronize()
        return 0.3 < time.perf_counter() - started < 30

    def chain(self, rows: int, count: int, *, fused: bool) -> Any:
        """`count` sums, each behind the one before."""
        start = torch.zeros(rows, self.width, dtype=self.dtype, device=self.device)

        def run(x: Tensor) -> Tensor:
            stream = start
            for _ in range(count):
                if fused:
                    stream, _ = peer_add_norm(stream, x, *self.gains, EPS, **self.options)
                else:
                    own = x[0].clone() if len(x) == 1 else x.sum(0)
                    dist.all_reduce(own)
                    stream, _ = add_norm(stream, own[None], *self.gains, EPS, pdl=self.pdl)
            return stream

        return run


def recorded(step: Any, device: torch.device) -> Any:
    """What replays `step`, which is done once before."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def seconds(replay: Any, repeat: int) -> float:
    """Of one replay."""
    spent = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        dist.barrier()
        started = time.perf_counter()
        replay()
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return median(spent)


def live(rank: int, args: argparse.Namespace, port: int, results: Any) -> None:
    """One rank's whole life."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    many = args.device == "cuda" and torch.cuda.device_count() >= args.ranks
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if many else "gloo",
        rank=rank,
        world_size=args.ranks,
        device_id=torch.device("cuda", rank) if many else None,
    )
    lab = Lab(rank, args)
    say = partial(print, flush=True) if rank == 0 else (lambda *_: None)
    wrong = [seed for seed in range(args.checks) if not lab.check(seed)]  # all ranks do all
    good = not wrong
    say(f"{args.checks} sums one by one: {'right, bit for bit' if good else 'WRONG'}")
    rows: list[dict[str, Any]] = []
    if lab.on_gpu:
        for count in args.rows:
            fine = lab.check_recorded(count, 12)
            say(f"recorded, {count} rows: {'right, bit for bit' if fine else 'WRONG'}")
            good = good and fine
        repeat = args.repeat if many else 2
        for count in args.rows:
            for parts in (1, 4):
                kind = torch.bfloat16 if parts == 1 else torch.float32
                x = lab.noise(rank, parts, count, args.width, seed=5, dtype=kind)
                row = {"ranks": args.ranks, "rows": count, "parts": parts, "own_gpus": many}
                for name, fused in (("fused", True), ("nccl", False)):
                    if not fused and not many:
                        continue
                    chain = lab.chain(count, args.sums, fused=fused)
                    replay = recorded(partial(chain, x), lab.device)
                    row[f"{name}_us"] = round(seconds(replay, repeat) / args.sums * 1e6, 2)
                say("  ".join(f"{name} {value}" for name, value in row.items()))
                rows.append(row)
    dist.barrier()
    if rank == 0:
        free = lab.check_let_go()
        say(f"left alone, rank 0 {'is let go' if free else 'IS NOT LET GO'}")
        good = good and free
    results.put((rank, bool(good), rows))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # groups of several backends need not be left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--rows", type=lambda t: [int(n) for n in t.split(",")], default=[1, 32, 256]
    )
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--checks", type=int, default=200)
    parser.add_argument("--sums", type=int, default=80)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--timeout", type=float, default=240)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    ranks = mp.spawn(live, (args, port, results), nprocs=args.ranks, join=False)
    end, found = time.monotonic() + args.timeout, []
    while len(found) < args.ranks and time.monotonic() < end:
        if results.empty():
            if any(process.exitcode for process in ranks.processes):
                break
            time.sleep(0.05)
        else:
            found.append(results.get())
    done = len(found) == args.ranks
    for process in ranks.processes:
        process.join(5 if done else 0)
        process.kill()
    good = done and all(each[1] for each in found)
    rows = next((each[2] for each in found if each[0] == 0), [])
    print("all sums right" if good else "WRONG, or not done", flush=True)
    if args.json:
        write(report("fused_sums", rows) | {"right": good}, args.json)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
