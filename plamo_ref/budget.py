"""What a config costs: parameters by part, bytes to keep and to move, floating-point operations.

Invariant: everything is arithmetic on a `Plamo2Config`; nothing is measured and no weight is read.
Built in notebooks/01_plamo2_anatomy.ipynb.

Shape letters: V vocabulary, D hidden, N SSM state size, K conv width, W window. A multiplication
and an addition are one FLOP each. Norms, activations and RoPE are not counted: together they are
below 1 % of any real model.
"""

import math
from dataclasses import dataclass

from plamo_ref.config import Plamo2Config

PARTS = ("embedding", "attention", "mamba", "mlp", "norms", "lm_head")


def parameters_by_part(config: Plamo2Config) -> dict[str, int]:
    """Parameters of each of `PARTS`; they add up to `config.num_parameters`.

    A tied model's output matrix is its embedding and counts there.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in config.tensor_shapes.items():
        counts[_part(name, config)] += math.prod(shape)
    return counts


def _part(name: str, config: Plamo2Config) -> str:
    words = name.split(".")
    if words[0] == "lm_head":
        return "lm_head"
    if words[1] != "layers":
        return "embedding" if words[1] == "embed_tokens" else "norms"
    if words[4] == "mixer":
        return "mamba" if config.is_mamba(int(words[3])) else "attention"
    return "mlp" if words[4] == "mlp" else "norms"


def head_flops(config: Plamo2Config) -> int:
    """FLOPs of the logits of one token; an lm_head has padding rows, a tied embedding has none."""
    rows = config.vocab_size if config.tie_word_embeddings else config.lm_head_rows
    return 2 * rows * config.hidden_size


def linear_flops(config: Plamo2Config) -> int:
    """FLOPs of all projections of one token, without the logits: 2 for each weight."""
    projections = (
        math.prod(shape)
        for name, shape in config.tensor_shapes.items()
        if name.endswith("_proj.weight")
    )
    return 2 * sum(projections)


def recurrence_flops(config: Plamo2Config) -> int:
    """FLOPs of the Mamba layers of one token, as the recurrence says it.

    Each of the inner × N state numbers decays (1), takes in B·Δx (2) and is read by C (2); the conv
    takes 2·K for each inner channel. A chunked scan does more arithmetic to use matrix units.
    """
    per_layer = config.mamba_inner_size * (5 * config.mamba_d_state + 2 * config.mamba_d_conv)
    return per_layer * len(config.layers_of("mamba"))


def attention_flops(config: Plamo2Config, keys_full: float, keys_windowed: float) -> float:
    """FLOPs of scores and weighted sums of one token that sees so many keys in each group."""
    keys = keys_full * len(config.layers_of("full"))
    keys += keys_windowed * len(config.layers_of("sliding_window"))
    return 4 * config.q_size * keys


def decode_flops(config: Plamo2Config, length: int) -> float:
    """FLOPs of feeding the token that makes the sequence `length` long, logits included."""
    windowed = min(length, config.attention_window_size + 1)
    token = linear_flops(config) + recurrence_flops(config) + head_flops(config)
    return token + attention_flops(config, length, windowed)


def prefill_flops(config: Plamo2Config, length: int) -> float:
    """FLOPs of a prompt of `length` tokens divided by `length`; only the last has logits."""
    full = (length + 1) / 2  # mean number of visible keys under a causal mask
    seen = min(length, config.attention_window_size + 1)
    windowed = (seen * (seen + 1) / 2 + (length - seen) * seen) / length
    token = linear_flops(config) + recurrence_flops(config) + head_flops(config) / length
    return token + attention_flops(config, full, windowed)


def weight_bytes_per_step(config: Plamo2Config, itemsize: int = 2) -> int:
    """Bytes of weights that one decode step must read, however many sequences it serves.

    All of them; an untied embedding table is looked up by rows, which is nothing beside the rest.
    """
    unread = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return config.weight_bytes(itemsize) - unread * itemsize


def decode_bytes(config: Plamo2Config, length: int, itemsize: int = 2, batch: int = 1) -> int:
    """Bytes that a decode step moves for `batch` sequences of `length` tokens.

    The weights once; for each sequence its keys and values read, its state read and written.
    """
    state = config.state_bytes(itemsize)
    cached = config.request_bytes(length, itemsize) - state
    return weight_bytes_per_step(config, itemsize) + batch * (cached + 2 * state)


@dataclass(frozen=True)
class LengthCost:
    """What a sequence of `length` tokens costs."""

    length: int
    request_bytes: int  # kept, to go on decoding
    prefill_flops_per_token: float
    decode_flops_per_token: float
    decode_floor_ms: float  # of one token of one sequence, if only memory traffic counted


def cost_at(
    config: Plamo2Config, length: int, *, itemsize: int = 2, bandwidth: float
) -> LengthCost:
    """The costs at `length` tokens, on a memory that moves `bandwidth` bytes per second."""
    return LengthCost(
        length=length,
        request_bytes=config.request_bytes(length, itemsize),
        prefill_flops_per_token=prefill_flops(config, length),
        decode_flops_per_token=decode_flops(config, length),
        decode_floor_ms=1000 * decode_bytes(config, length, itemsize) / bandwidth,
    )
