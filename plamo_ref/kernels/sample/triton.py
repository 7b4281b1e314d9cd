# mypy: disallow-untyped-defs=False
"""A token from each row of logits, without sorting the row.

Formula and twin: plamo_ref/kernels/sample/twin.py.

One program has one row. Who is kept is always "all keys above t, and the first few that equal t",
where a key is an integer that orders as the logits do; t is found by narrowing an interval of keys
to a quarter with each pass over the row, which measures the tokens above three keys: their number
for top-k, their weight for top-p. Sums of integers are exact, so the token is the twin's wherever
the two exponentials agree.

    pass 1            the largest logit and its first id: all that a greedy row needs
    8 or 16 passes    top-k, where asked: half of the bits suffice for bfloat16
    one pass          the weight that is left
    8 or 16 passes    top-p, where asked
    last pass         the block, then the token, in which the cumulated weight passes u · Σ w

Invariant: rows are independent, and the host reads nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config, launch, pick, with_unit_stride
from plamo_ref.kernels.sample.twin import KNOBS, UNIT

# Size: the vocabulary. A block is what one loop iteration reads.
SAMPLE_CONFIGS = (
    Config(up_to=1024, block=512, warps=4),
    Config(up_to=16384, block=2048, warps=8),
    Config(up_to=1 << 22, block=4096, warps=16),
)


@triton.jit
def key_of(x, SHIFT: tl.constexpr):
    """An integer that orders as the float32 x does; -0 is 0. SHIFT drops bits that are not used."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def value_of(key, SHIFT: tl.constexpr):
    """The x whose key this is."""
    bits = (key.to(tl.int32) << SHIFT) | ((key.to(tl.int32) >> 31) & ((1 << SHIFT) - 1))
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(x, top, temperature, least, UNIT: tl.constexpr):
    """w of the formula, int64; 0 below `least`, which is what min-p asks."""
    below = tl.where(x == top, 0.0, x - top)
    weight = (tl.exp(below / temperature) * UNIT + 0.5).to(tl.int64)
    return tl.where(weight >= least, weight, 0)


@triton.jit
def load(row_ptr, ids, V):
    return tl.load(row_ptr + ids, mask=ids < V, other=-float("inf")).to(tl.float32)


@triton.jit
def largest(row_ptr, V, BLOCK: tl.constexpr):
    """The largest logit, and the first id that has it."""
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    where = lane
    for start in range(0, V, BLOCK):
        x = load(row_ptr, start + lane, V)
        where = tl.where(x > best, start + lane, where)
        best = tl.maximum(x, best)
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, where, V - 1), axis=0)


@triton.jit
def measure(
    row_ptr, V, a, b, c, top, temperature, least, COUNT: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Number (COUNT) or weight of the tokens whose keys are at least a, at least b, at least c."""
    lane = tl.arange(0, BLOCK)
    from_a = tl.zeros([BLOCK], tl.int64)
    from_b = tl.zeros([BLOCK], tl.int64)
    from_c = tl.zeros([BLOCK], tl.int64)
    for start in range(0, V, BLOCK):
        x = load(row_ptr, start + lane, V)
        key = key_of(x, SHIFT).to(tl.int64)
        if COUNT:
            weight = (start + lane < V).to(tl.int64)
        else:
            weight = weight_of(x, top, temperature, least, UNIT)
        from_a += tl.where(key >= a, weight, 0)
        from_b += tl.where(key >= b, weight, 0)
        from_c += tl.where(key >= c, weight, 0)
    return tl.sum(from_a, axis=0), tl.sum(from_b, axis=0), tl.sum(from_c, axis=0)


@triton.jit
def threshold(
    row_ptr, V, low, high, goal, top, temperature, least, COUNT: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(t, measure of the keys above t): the smallest t from `low` on whose upper side is ≤ goal.

    No key may be at or above `high`.
    """
    above = goal * 0
    while high - low > 1:
        quarter = tl.maximum((high - low) // 4, 1)
        a, b, c = low + quarter, low + 2 * quarter, low + 3 * quarter
        from_a, from_b, from_c = measure(
            row_ptr, V, a, b, c, top, temperature, least, COUNT, SHIFT, UNIT, BLOCK
        )
        few_a, few_b, few_c = from_a <= goal, from_b <= goal, from_c <= goal
        low = tl.where(few_a, low, tl.where(few_b, a, tl.where(few_c, b, c)))
        high = tl.where(few_a, a, tl.where(few_b, b, tl.where(few_c, c, high)))
        above = tl.where(few_a, from_a, tl.where(few_b, from_b, tl.where(few_c, from_c, above)))
        low = tl.where(above == goal, high - 1, low)  # it cannot get better
    return low, above


@triton.jit
def draw(
    row_ptr, V, t, ties, target, top, temperature, least, SHIFT: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The first id at which the cumulated weight of the kept tokens is above `target`."""
    lane = tl.arange(0, BLOCK)
    tie_weight = weight_of(value_of(t, SHIFT), top, temperature, least, UNIT)
    start = 0
    weight = target * 0
    taken = ties * 0
    while (weight <= target) & (start < V):  # whole blocks, until one goes past the target
        target -= weight
        ties -= taken
        x = load(row_ptr, start + lane, V)
        key = key_of(x, SHIFT).to(tl.int64)
        above = tl.where(key > t, weight_of(x, top, temperature, least, UNIT), 0)
        taken = tl.minimum(tl.sum((key == t).to(tl.int64), axis=0), ties)
        weight = tl.sum(above, axis=0) + taken * tie_weight
        start += BLOCK
    start = tl.maximum(start - BLOCK, 0)
    x = load(row_ptr, start + lane, V)
    key = key_of(x, SHIFT).to(tl.int64)
    tied = (key == t).to(tl.int32)
    kept = (key > t) | ((tied == 1) & (tl.cumsum(tied, axis=0) <= ties))
    weights = tl.where(kept, weight_of(x, top, temperature, least, UNIT), 0)
    passed = (tl.cumsum(weights, axis=0) <= target).to(tl.int32)
    return tl.minimum(start + tl.sum(passed, axis=0), V - 1)


@triton.jit
def sample_kernel(
    logits_ptr, knobs_ptr, out_ptr, stride, V, KNOBS: tl.constexpr, SHIFT: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    knob_ptr = knobs_ptr + row * KNOBS
    temperature = tl.load(knob_ptr).to(tl.float32)
    top, token = largest(row_ptr, V, BLOCK)
    if (temperature > 0) & (top > -float("inf")):
        top_k = tl.load(knob_ptr + 1).to(tl.int64)
        top_p = tl.load(knob_ptr + 2)
        least = tl.ceil(tl.load(knob_ptr + 3) * UNIT).to(tl.int64)
        high = key_of(top, SHIFT).to(tl.int64) + 1

        # Keep all that is above -inf, whose weight is 0.
        t = key_of(tl.full([], -float("inf"), tl.float32), SHIFT).to(tl.int64)
        ties = top_k * 0
        if top_k < V:
            t, above = threshold(
                row_ptr, V, t, high, top_k, top, temperature, least, True, SHIFT, UNIT, BLOCK
            )
            ties = top_k - above
        total, _, _ = measure(
            row_ptr, V, t + 1, high, high, top, temperature, least, False, SHIFT, UNIT, BLOCK
        )
        total += ties * weight_of(value_of(t, SHIFT), top, temperature, least, UNIT)
        if top_p < 1:
            goal = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
            lowest = t
            t, above = threshold(
                row_ptr, V, t, high, goal, top, temperature, least, False, SHIFT, UNIT, BLOCK
            )
            tie = weight_of(value_of(t, SHIFT), top, temperature, least, UNIT)
            needed = (goal - above + tie - 1) // tl.maximum(tie, 1)
            ties = tl.where(t > lowest, needed, tl.minimum(needed, ties))
            total = above + ties * tie
        target = (tl.load(knob_ptr + 4) * total.to(tl.float64)).to(tl.int64)
        target = tl.minimum(target, total - 1)
        token = draw(row_ptr, V, t, ties, target, top, temperature, least, SHIFT, UNIT, BLOCK)
    tl.store(out_ptr + row, token.to(tl.int64))


def sample(logits: Tensor, knobs: Tensor, truncated: bool = True) -> Tensor:
    """logits [B, V], knobs [B, 5] float64 → [B] int64. As the twin; each row sees for itself
    whether it is truncated."""
    rows, size = logits.shape
    if not (knobs.shape == (rows, len(KNOBS)) and knobs.dtype == torch.float64):
        raise KernelError(
            f"sample: logits {list(logits.shape)} need knobs [{rows}, {len(KNOBS)}] in float64, "
            f"not {list(knobs.shape)} in {knobs.dtype}"
        )
    config = pick(SAMPLE_CONFIGS, size)
    logits = with_unit_stride(logits)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    launch(
        sample_kernel,
        (rows,),
        logits,
        knobs.contiguous(),
        out,
        logits.stride(0),
        size,
        config=config,
        KNOBS=len(KNOBS),
        SHIFT=16 if logits.dtype == torch.bfloat16 else 0,  # its lower half is 0
        UNIT=UNIT,
        BLOCK=config.block,
    )
    return out
