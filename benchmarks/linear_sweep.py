"""Which configuration multiplies a few tokens fastest: `python benchmarks/linear_sweep.py`.

It made the tables in plamo_ref/kernels/linear/triton.py, and with `--tokens 80,96,112,128`
that of SwiGLU in tiles in triton_tiles.py. For every projection of the 8B shape and
several numbers of tokens it times candidates and cuBLAS on weights that do not fit the cache, all
launches in one CUDA graph, as a decode step makes them. Needs a GPU.
"""

import argparse
import itertools
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

SHAPES = {  # out, in, SwiGLU
    "in": (16384, 4096, False),
    "bcdt": (384, 8192, False),
    "out": (4096, 8192, False),
    "gate_up": (32768, 4096, True),
    "down": (4096, 16384, False),
    "qkv": (5120, 4096, False),
    "o": (4096, 4096, False),
    "head": (100000, 4096, False),
}
TOKENS = (1, 8, 32, 64, 128, 256)
WEIGHT_BYTES = 300 << 20  # read in one graph, several times the L2 cache
#        block, tile, stages, warps
SMALL = [
    (64, 128, 4, 4), (64, 128, 3, 4), (64, 256, 3, 4), (64, 64, 6, 4), (128, 64, 4, 4),
    (128, 128, 3, 8), (128, 64, 5, 8), (64, 256, 2, 4), (32, 128, 4, 4), (32, 256, 3, 4),
    (32, 128, 6, 4), (32, 256, 3, 8), (64, 256, 3, 8), (64, 128, 5, 8), (32, 512, 2, 4),
]  # fmt: skip
MIDDLE = [(64, 128, 4, 4), (64, 64, 6, 4), (128, 64, 4, 4), (128, 128, 3, 8), (128, 64, 5, 8),
          (32, 128, 4, 4), (32, 256, 3, 4), (64, 128, 4, 8), (64, 256, 2, 8)]  # fmt: skip
LARGE = [(64, 64, 5, 4), (128, 64, 3, 8), (128, 64, 4, 8), (64, 128, 3, 8), (128, 128, 2, 8)]
#        block, tile, stages: of 65 to 128 tokens with SwiGLU
TILED = [(64, 64, 5), (128, 64, 4), (64, 128, 3), (128, 64, 3)]
CANDIDATES = {16: SMALL, 32: MIDDLE, 64: MIDDLE, 128: LARGE, 256: LARGE}


def constants(rung: int, candidate: tuple[int, ...], swiglu: bool, pdl: bool) -> dict[str, object]:
    block, tile, stages, warps = candidate
    return {
        "SWIGLU": swiglu, "BLOCK_N": block, "BLOCK_K": tile, "BLOCK_T": rung, "PRECISION": "tf32",
        "PREFETCH": 256, "PDL": pdl, "num_warps": warps, "num_stages": stages,
        "enable_fp_fusion": True, "launch_pdl": pdl,
    }  # fmt: skip


def rung_of(tokens: int) -> int:
    return max(16, 1 << (tokens - 1).bit_length())


def compile_one(job: tuple[int, tuple[int, ...], bool, bool, bool]) -> str:
    """In a process of its own: afterwards the kernel is in the cache folder."""
    from plamo_ref.kernels.linear.triton import linear_kernel

    rung, candidate, swiglu, pdl, wide = job
    out = torch.float32 if wide else torch.bfloat16
    try:
        linear_kernel.warmup(
            torch.bfloat16, torch.bfloat16, out, 7, 4096, 4096, 4096, 4096, 256,
            grid=(1,), **constants(rung, candidate, swiglu, pdl),
        )  # fmt: skip
    except Exception as error:
        return f"{job}: {str(error)[:100]}"
    return ""


def graph_ms(step, repeats: int = 7) -> float:
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    options = parser.parse_args()
    counts = [int(n) for n in options.tokens.split(",")]
    rungs = sorted({rung_of(n) for n in counts})
    jobs = [
        (rung, candidate, swiglu, pdl, wide)
        for rung in rungs
        for candidate in CANDIDATES[rung]
        for swiglu, wide in ((False, False), (False, True), (True, False))
        for pdl in (False, True)
    ]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for problem in pool.map(compile_one, jobs, chunksize=1):
            if problem:
                print(problem)

    import triton

    from plamo_ref.kernels.launch import Config
    from plamo_ref.kernels.linear.swiglu import swiglu as swiglu_twin
    from plamo_ref.kernels.linear.triton import LEAST_COLUMNS, linear_kernel
    from plamo_ref.kernels.linear.triton_swiglu import swiglu as swiglu_op
    from plamo_ref.kernels.linear.triton_tiles import swiglu_in_tiles

    torch.manual_seed(0)
    print(torch.cuda.get_device_name())
    rows = []
    for name, (outs, ins, swiglu) in SHAPES.items():
        copies = max(1, WEIGHT_BYTES // (2 * outs * ins))
        weights = [torch.randn(outs, ins, device="cuda", dtype=torch.bfloat16) * 0.02
                   for _ in range(copies)]  # fmt: skip
        n = outs // 2 if swiglu else outs
        for tokens in counts:
            x = torch.randn(tokens, ins, device="cuda", dtype=torch.bfloat16)
            truth = x.double() @ weights[0].double().T
            if swiglu:
                truth = swiglu_twin(truth)
            rung = rung_of(tokens)

            def library(weights=weights, x=x, swiglu=swiglu):
                for w in weights:
                    y = torch.nn.functional.linear(x, w)
                    if swiglu:
                        swiglu_op(y)

            moved = 2 * outs * ins
            base = graph_ms(library) / copies
            found = [("cublas", 1, False, base, 0.0)]
            for candidate, pdl in itertools.product(CANDIDATES[rung], (True, False)):
                block, tile, *_ = candidate
                blocks = triton.cdiv(n, block)
                most = max(1, ins // max(LEAST_COLUMNS, tile))
                wishes = {
                    min(most, 1 << max(0, (w // blocks)).bit_length() - 1 if w >= blocks else 1)
                    for w in (132, 264, 528)
                }
                if swiglu or name == "head":
                    wishes = {1}
                for parts in sorted(wishes):
                    if not pdl and parts != max(wishes):
                        continue
                    part = triton.cdiv(triton.cdiv(ins, parts), tile) * tile
                    dtype = torch.float32 if parts > 1 else torch.bfloat16
                    out = torch.full((parts, tokens, n), torch.nan, device="cuda", dtype=dtype)

                    flags = constants(rung, candidate, swiglu, pdl)

                    def mine(
                        out=out, x=x, part=part, grid=(blocks, parts), weights=weights, n=n,
                        ins=ins, flags=flags,
                    ):  # fmt: skip
                        for w in weights:
                            linear_kernel[grid](
                                x, w, out, x.shape[0], x.stride(0), n, ins, w.stride(0), part,
                                **flags,
                            )  # fmt: skip

                    try:
                        linear_kernel[(blocks, parts)](
                            x, weights[0], out, tokens, x.stride(0), n, ins,
                            weights[0].stride(0), part, **constants(rung, candidate, swiglu, pdl),
                        )  # fmt: skip
                        got = out.double().sum(0)
                        error = float((got - truth).norm() / truth.norm())
                        took = graph_ms(mine) / copies
                    except Exception as problem:
                        print(name, tokens, candidate, str(problem)[:80])
                        continue
                    found.append((str(candidate), parts, pdl, took, error))
            for candidate in TILED if swiglu and 64 < tokens <= 128 else ():
                block, tile, stages = candidate
                row = Config(tokens, block, warps=8, stages=stages, tile=tile)

                def tiled(x=x, weights=weights, row=row):
                    for w in weights:
                        swiglu_in_tiles(x, w, row, pdl=True)

                got = swiglu_in_tiles(x, weights[0], row, pdl=True).double()
                error = float((got - truth).norm() / truth.norm())
                found.append((f"tiles {candidate}", 1, True, graph_ms(tiled) / copies, error))
            found.sort(key=lambda row: row[3])
            bad = [row for row in found if not row[4] < 1e-2]
            for label, parts, pdl, took, error in found:
                rows.append({"weight": name, "tokens": tokens, "config": label, "parts": parts,
                             "pdl": pdl, "us": round(took * 1e3, 2), "error": error})  # fmt: skip
            best = "  ".join(
                f"{label}/{parts}{'p' if pdl else ''} {took * 1e3:.1f}us {moved / took / 1e9:.2f}"
                for label, parts, pdl, took, _ in found[:4]
            )
            nopdl = next((r for r in found if not r[2] and r[0] != "cublas"), None)
            note = f" best without pdl {nopdl[3] * 1e3:.1f}" if nopdl else ""
            note += f" BAD {bad}" if bad else ""
            speed = moved / base / 1e9
            print(f"{name:8}{tokens:4} cublas {base * 1e3:.1f}us {speed:.2f} | {best} |{note}")
        del weights
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
