"""What a step cannot be faster than, from what it must move and compute and what the machine can.

Invariant: every byte and operation is counted by plamo_ref/budget.py, every rate was measured; a
floor leaves out whatever an ideal engine could leave out.

Products of e4m3 with e4m3 have a rate of their own. Where it was not measured they are not counted,
and a floor is one of bytes, which is true and lower.

A decode step reads the weights once while it multiplies with them, whichever takes longer; each
sequence's own state and keys come on top, for no other sequence can use them.
"""

from functools import cache, partial

from plamo_ref.bench.kernels.ceilings import Ceilings
from plamo_ref.bench.simulator import Trace, replay
from plamo_ref.budget import (
    head_flops,
    linear_flops,
    prefill_flops,
    weight_bytes_per_step,
)
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.quantization.schemes import SCHEMES


def in_e4m3(config: Plamo2Config) -> bool:
    """Whether the projections multiply e4m3 with e4m3."""
    return bool(config.quantization) and SCHEMES[config.quantization or ""].quantized_activations


def _floor(
    config: Plamo2Config, moved: float, operations: float, tokens: int, best: Ceilings
) -> float:
    """Seconds for all `operations`, those of the projections of so many tokens among them."""
    in_fp8 = tokens * linear_flops(config) if in_e4m3(config) else 0
    return best.floor(moved, operations - in_fp8, in_fp8)


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
    operations = batch * (linear_flops(config) + head_flops(config))
    weights = _floor(config, weight_bytes_per_step(config, item), operations, batch, best)
    own = sequence_bytes(config, length, item, state_item, kv_item, replay)
    return weights + batch * own / best.copy


def prefill_floor(
    config: Plamo2Config, batch: int, length: int, item: int, best: Ceilings
) -> float:
    """Seconds for `batch` prompts of `length` tokens, up to the first token of each."""
    tokens, moved = batch * length, weight_bytes_per_step(config, item)
    return _floor(config, moved, tokens * prefill_flops(config, length), tokens, best)


def part_flops(config: Plamo2Config, start: int, end: int, sampled: bool) -> float:
    """FLOPs of tokens `start` to `end - 1` of a sequence, the last one's logits if one follows."""
    before = start * prefill_flops(config, start) if start else head_flops(config)
    return end * prefill_flops(config, end) - before + sampled * head_flops(config)


def trace_floor(
    config: Plamo2Config,
    trace: Trace,
    engine: EngineConfig,
    item: int,
    state_item: int,
    best: Ceilings,
    kv_item: int | None = None,
) -> float:
    """Seconds for a whole trace: the sum of its steps' floors, as the scheduler cuts it with so
    many seats and tokens in a step, and with memory for all.

    A step's is that of `decode_floor`: its arithmetic, while the weights are read, and what its
    decodes move for themselves. Arithmetic alone would not say that weights are read again in each.
    A prompt's own bytes are nothing beside its work.
    """
    flops = cache(partial(part_flops, config))  # many are alike
    every = engine.state_replay
    own = cache(lambda n: sequence_bytes(config, n, item, state_item, kv_item, every))
    weights, seconds = weight_bytes_per_step(config, item), 0.0
    for step in replay(trace, _plain(engine, trace)):
        parts = [(s.start, s.start + s.num_tokens, s.sampled) for s in step.scheduled]
        moved = sum(own(s.start + 1) for s in step.scheduled if s.kind == "decode")
        operations = sum(flops(*part) for part in parts)
        seconds += _floor(config, weights, operations, step.num_tokens, best) + moved / best.copy
    return seconds


def _plain(engine: EngineConfig, trace: Trace) -> EngineConfig:
    """What of the settings decides who computes how many tokens in which step."""
    return EngineConfig(
        scheduler=engine.scheduler,
        chunk_size=engine.chunk_size,
        max_num_seqs=engine.seats,
        max_num_batched_tokens=engine.step_tokens,
        max_model_len=max(job.prompt_len + job.output_len for job in trace.requests),
        overlap=False,
        device="cpu",
    )
