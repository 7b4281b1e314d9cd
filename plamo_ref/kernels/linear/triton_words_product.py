"""Which kernel multiplies with an int4 or int8 weight in words, and how it is launched.

Kernels: triton_few_words.py where a row of the table has slices, else triton_words.py.

Invariant: what a kernel is asked for covers whole units of a row, whatever the row's length.
"""

import math
from dataclasses import replace

import torch
import triton
from torch import Tensor

from plamo_ref.kernels.launch import (
    Config,
    before_hopper,
    has_wgmma,
    launch,
    power_of_two,
    precision,
)
from plamo_ref.kernels.linear.triton import LEAST_COLUMNS
from plamo_ref.kernels.linear.triton_few_words import few_words_kernel
from plamo_ref.kernels.linear.triton_words import words_linear_kernel
from plamo_ref.quantization.weight import QuantizedWeight
from plamo_ref.quantization.words import BITS

MOST_TOKENS = 256  # of a tile; half of it before Hopper, whose shared memory it needs
LEAST_TOKENS, LEAST_OF_FEW = 16, 8  # the matrix units have so many: what is missing is masked
FEW_TOKENS = 64  # int4: up to these, sums behind the unit of matrices cost less than a wait for it
PREFETCH_WORDS = 64  # of a row, asked for while earlier kernels still run


def words_product(
    x: Tensor,
    weight: QuantizedWeight,
    config: Config,
    parts: int,
    *,
    swiglu: bool = False,
    pdl: bool = False,
) -> Tensor:
    """x [T, in] with unit stride, weight [out, in] in words → [parts, T, out]."""
    (tokens, columns), rows = x.shape, weight.shape[0] // (2 if swiglu else 1)
    config, most = _fitting(config, weight, x)
    step = config.tile * max(config.slices, 1)
    part = triton.cdiv(columns // step, parts)  # iterations
    parts = triton.cdiv(columns // step, part)
    dtype = x.dtype if parts == 1 else torch.float32
    out = torch.empty((parts, tokens, rows), dtype=dtype, device=x.device)
    least = LEAST_OF_FEW if config.slices else LEAST_TOKENS
    block_t = min(power_of_two(tokens, least), most)
    warps = min(config.warps, config.block // 16)
    words = weight.values.view(torch.int32)
    asm = x.device.type != "cpu" and x.dtype == torch.bfloat16
    how_sums_are_kept = {
        "CHAIN": not (asm and weight.group and block_t <= FEW_TOKENS),
        "WAIT": has_wgmma(x.device) and config.block >= 64,
    }
    launch(
        few_words_kernel if config.slices else words_linear_kernel,
        (triton.cdiv(weight.shape[0], config.block) * triton.cdiv(tokens, block_t), parts),
        x,
        words,
        weight.scale,
        out,
        tokens,
        x.stride(0),
        rows,
        words.stride(0),
        weight.scale.stride(1) if weight.group else 0,
        columns // step,
        part,
        config=config,
        BITS=BITS[weight.format],
        UNIT=weight.unit,
        ASM=asm,
        SWIGLU=swiglu,
        BLOCK_N=config.block,
        BLOCK_K=config.tile,
        BLOCK_T=block_t,
        WARPS=config.slices or warps,
        PRECISION=precision(x.dtype),
        PREFETCH=PREFETCH_WORDS,
        PDL=pdl,
        **({} if config.slices else how_sums_are_kept),
    )
    return out


def tile_tokens(device: torch.device) -> int:
    """Tokens of a tile, at most."""
    return MOST_TOKENS // 2 if before_hopper(device) else MOST_TOKENS


def parts_of_many(weight: QuantizedWeight, config: Config, tokens: int) -> int:
    """How many programs share the columns where each has a multiprocessor to itself: as many as
    there are multiprocessors for, in one go."""
    tiles = triton.cdiv(tokens, tile_tokens(weight.values.device))
    blocks = triton.cdiv(weight.shape[0], config.block) * tiles
    return max(1, min(config.programs // 2 // blocks, weight.shape[1] // LEAST_COLUMNS))


def _fitting(config: Config, weight: QuantizedWeight, x: Tensor) -> tuple[Config, int]:
    """The row of the table for these, and how many tokens a tile has at most.

    A step takes whole units, and a row has a whole number of steps.
    """
    columns, most = weight.shape[1], tile_tokens(x.device)
    if before_hopper(x.device):  # whose unit of matrices has both operands in registers
        config = replace(config, block=min(config.block, 128))
    if x.dtype == torch.float32 and x.device.type != "cpu":
        # Twice as wide, every operand in two halves: for checking.
        config, most = replace(config, stages=2, tile=32, block=min(config.block, 64)), 32
    tile = math.gcd(columns, max(config.tile, weight.unit))
    if config.slices:
        slices = math.gcd(columns // tile, config.slices)
        return replace(config, tile=tile, slices=slices, warps=slices), most
    return replace(config, tile=tile), most
