"""How a prefill scan is cut into programs: chunks, segments, rows of P.

Invariant: chosen from shapes and the kind of GPU alone. Lengths are on the device, and the host
never waits for them. The tables were made with benchmarks/scan_sweep.py.
"""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from plamo_ref.kernels.launch import Config, before_hopper, power_of_two

CARRY_CONFIG = Config(up_to=1 << 30, block=1024, warps=4, stages=4)
PHOTOGRAPH_CONFIG = Config(up_to=1 << 30, block=64, warps=4, stages=2)


@dataclass(frozen=True)
class Plan:
    """How a scan is cut into programs; benchmarks/scan_sweep.py measures others."""

    chunk: int  # tokens of one product of matrices
    walk: Config  # of scan_kernel: a block is rows of P
    sums: Config  # of segment_sum_kernel: likewise
    carry: Config = CARRY_CONFIG  # of segment_carry_kernel: a block is elements of a state
    photograph: Config = PHOTOGRAPH_CONFIG  # of scan_photograph_kernel: rows of P
    segment: int = 1024  # tokens, a multiple of the chunk; a program walks through one segment


# Parts of 16 tokens and fewer are all state.
SHORT_PLAN = Plan(16, Config(1 << 30, block=128, warps=4), Config(1 << 30, block=64, warps=4))
# Chunks of 64 fill Hopper's matrix unit.
PLAN = Plan(
    64,
    Config(1 << 30, block=128, warps=4, stages=2),  # 3: 2 % faster, but spills more
    Config(1 << 30, block=128, warps=4, stages=3),
)
# Too few segments for all multiprocessors: half of a head to a program.
FEW_PLAN = replace(PLAN, walk=Config(1 << 30, block=64, warps=4, stages=2))
# Before Hopper, products take their operands from registers: a thread has room for half as much.
OLDER_PLAN = replace(PLAN, walk=replace(PLAN.walk, warps=8, stages=1))
# float32: each operand of tf32x3 in two halves, so smaller tiles.
WIDE_CONFIG = Config(1 << 30, block=32, warps=4)
WIDE_PLAN = Plan(16, WIDE_CONFIG, WIDE_CONFIG, photograph=WIDE_CONFIG)
MULTIPROCESSORS = 132  # of a large GPU
PROGRAMS = 256  # that one step should have: two for each multiprocessor
SEGMENTS = (256, 2048)  # the shortest (below, three launches cost more than they save), the longest


def plan_scan(u: Tensor, requests: int) -> Plan:
    """The cut for inputs u [T, H, P]: from the shape alone, lengths are on the device."""
    tokens, heads, _ = u.shape
    segment = power_of_two(triton.cdiv(tokens * heads, PROGRAMS))
    segment = min(max(segment, SEGMENTS[0]), SEGMENTS[1])
    if u.dtype == torch.float32:
        plan = WIDE_PLAN
    elif tokens <= SHORT_PLAN.chunk * requests:
        plan = SHORT_PLAN
    elif before_hopper(u.device):
        plan = OLDER_PLAN
    elif heads * (tokens // segment + requests) <= MULTIPROCESSORS:
        plan = FEW_PLAN
    else:
        plan = PLAN
    return replace(plan, segment=segment)
