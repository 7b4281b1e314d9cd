"""What a step cannot be faster than, from what it must move and compute and what the machine can.

Invariant: every byte and operation is counted by plamo_ref/budget.py, every rate was measured; a
floor leaves out whatever an ideal engine could leave out.

Products of e4m3 with e4m3 are not counted: the rate that was measured is not theirs. There a floor
is one of bytes, which is true and lower.

A decode step reads the weights once while it multiplies with them, whichever takes longer; each
sequence's own state and keys come on top, for no other sequence can use them.
"""

from plamo_ref.bench.kernels.ceilings import Ceilings
from plamo_ref.bench.simulator import Trace
from plamo_ref.budget import (
    decode_flops,
    head_flops,
    linear_flops,
    prefill_flops,
    weight_bytes_per_step,
)
from plamo_ref.config import Plamo2Config
from plamo_ref.quantization.schemes import SCHEMES


def _counted(config: Plamo2Config) -> int:
    """FLOPs of the projections of one token, those in e4m3 left out."""
    scheme = SCHEMES[config.quantization] if config.quantization else None
    return 0 if scheme and scheme.quantized_activations else linear_flops(config)


def sequence_bytes(
    config: Plamo2Config,
    length: int,
    item: int,
    state_item: int,
    kv_item: int | None = None,
    replay: int = 1,
) -> int:
    """What one decoding sequence moves for itself: its state twice, its keys and values once.
    kv_item: bytes of a number in these, if it is not `item`. replay: tokens until the state of the
    scan is written, the mean of so many steps: each reads the inputs since, and writes its own."""
    state = config.state_bytes(item, state_item)
    keys = config.request_bytes(length, item, state_item) - state
    conv = config.state_bytes(item, 0)
    ring = config.ring_bytes(replay, item) * (replay + 1) // (2 * replay)
    own = state + conv + (state - conv) // replay + ring
    return own + keys * (kv_item or item) // item


def decode_bytes(
    config: Plamo2Config,
    batch: int,
    length: int,
    item: int,
    state_item: int,
    kv_item: int | None = None,
    replay: int = 1,
) -> int:
    """All that a decode step of `batch` sequences moves."""
    own = sequence_bytes(config, length, item, state_item, kv_item, replay)
    return weight_bytes_per_step(config, item) + batch * own


def decode_floor(
    config: Plamo2Config,
    batch: int,
    length: int,
    item: int,
    state_item: int,
    best: Ceilings,
    kv_item: int | None = None,
    replay: int = 1,
) -> float:
    """Seconds of a step in which `batch` sequences of `length` tokens get one more."""
    operations = batch * (_counted(config) + head_flops(config))
    weights = best.floor(weight_bytes_per_step(config, item), operations)
    own = sequence_bytes(config, length, item, state_item, kv_item, replay)
    return weights + batch * own / best.copy


def prefill_floor(
    config: Plamo2Config, batch: int, length: int, item: int, best: Ceilings
) -> float:
    """Seconds for `batch` prompts of `length` tokens, up to the first token of each."""
    left_out = linear_flops(config) - _counted(config)
    operations = batch * length * (prefill_flops(config, length) - left_out)
    return best.floor(weight_bytes_per_step(config, item), operations)


def trace_floor(config: Plamo2Config, trace: Trace, best: Ceilings) -> float:
    """Seconds for a whole trace: its arithmetic alone, as if all weights were always at hand."""
    operations, left_out = 0.0, linear_flops(config) - _counted(config)
    for job in trace.requests:
        operations += job.prompt_len * (prefill_flops(config, job.prompt_len) - left_out)
        middle = job.prompt_len + job.output_len // 2
        operations += (job.output_len - 1) * (decode_flops(config, middle) - left_out)
    return operations / best.product
