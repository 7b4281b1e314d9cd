"""What other implementations of PLaMo 2 do differently, and what becomes of a text under it.

Each way is one that a public implementation takes or took. All of them read the same checkpoint and
the same text, and their logits are held against the exact ones, position by position.

Invariant: one thing is changed at a time, everything in float64: what differs is the deviation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from torch import Tensor

from plamo_ref.config import Plamo2Config
from plamo_ref.reference import Plamo2Reference
from plamo_ref.reference.mamba import MambaState
from plamo_ref.reference.model import SequenceState
from plamo_ref.teaching.figures import figure, style_of

PIECE = 512  # tokens that are fed at once
ROUNDING = 1e-9  # of float64, and far below any deviation


@dataclass(frozen=True)
class Deviation:
    """One way not to be exact."""

    name: str
    config: Callable[[Plamo2Config], Plamo2Config] = lambda config: config
    state_dtype: torch.dtype | None = None  # in which the state is kept between tokens


def _far(config: Plamo2Config) -> Plamo2Config:
    return replace(config, attention_window_size=config.max_position_embeddings)


DEVIATIONS = (
    Deviation("a state in bfloat16", state_dtype=torch.bfloat16),
    Deviation(
        "W keys instead of W + 1",
        lambda config: replace(config, attention_window_size=config.attention_window_size - 1),
    ),
    Deviation("no window", _far),
    Deviation("no full layer", lambda config: replace(config, full_attention_idx=())),
    Deviation("one RoPE base", lambda config: replace(config, rope_local_theta=config.rope_theta)),
)


def long_memory_config(window: int) -> Plamo2Config:
    """A small model that has everything: Mamba, windows, a full layer, two bases."""
    return Plamo2Config(
        hidden_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size_per_head=32,
        attention_window_size=window,
        full_attention_idx=(3,),
        rope_theta=1_000_000.0,
        mamba_d_state=16,
        mamba_num_heads=4,
        intermediate_size=128,
        vocab_size=640,
    )


def long_memory_weights(config: Plamo2Config, seed: int = 0) -> dict[str, Tensor]:
    """Random weights that make use of what is far back: states that forget half in about 100 to
    10,000 tokens, and queries that pick single keys out of their window."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in _shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        last = name.rpartition(".")[2]
        if last == "A_log":
            weights[name] = torch.zeros(shape, dtype=torch.float64)
        elif last == "dt_bias":  # softplus of it, times A = -1, is what a token costs the state
            half_lives = torch.logspace(2, 4, shape[0], dtype=torch.float64)
            weights[name] = torch.log(torch.expm1(math.log(2) / half_lives))
        elif last in ("q_weight", "k_weight"):
            weights[name] = 2 + 0.1 * noise
        elif last in ("D", "dt_norm_weight", "B_norm_weight", "C_norm_weight"):
            weights[name] = 1 + 0.1 * noise
        elif "norm" in name:  # stored without its offset
            weights[name] = 0.05 * noise
        else:
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
    return weights


def _shapes(config: Plamo2Config) -> Mapping[str, Sequence[int]]:
    with torch.device("meta"):
        model = Plamo2Reference(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Departure:
    """What a deviation does to a text."""

    name: str
    errors: Sequence[float]  # max |logits - exact| / their root mean square, of `every` tokens the
    every: int  # largest
    begins: int | None  # position of the first token with more than rounding
    first_other_token: int | None  # … behind which another token is the likeliest


def reference(config: Plamo2Config, weights: Mapping[str, Tensor]) -> Plamo2Reference:
    """The slow truth with these weights."""
    with torch.device("meta"):
        model = Plamo2Reference(config)
    model.load_state_dict(dict(weights), assign=True)
    return model


def departures(
    config: Plamo2Config,
    weights: Mapping[str, Tensor],
    ids: Tensor,
    deviations: Sequence[Deviation] = DEVIATIONS,
    every: int = 1,
) -> list[Departure]:
    """The text `ids` [T] under each deviation.

    Args:
        weights: in float64, with the checkpoint's names.
        every: tokens for one error, the largest of theirs.
    """
    exact = _logits(config, weights, ids, None)
    scale = exact.square().mean(-1).sqrt()
    found = []
    for deviation in deviations:
        logits = _logits(deviation.config(config), weights, ids, deviation.state_dtype)
        errors = (logits - exact).abs().amax(-1) / scale
        largest = [float(part.max()) for part in errors.split(every)]
        others = logits.argmax(-1) != exact.argmax(-1)
        first, other = _first(errors > ROUNDING), _first(others)
        found.append(Departure(deviation.name, largest, every, first, other))
    return found


def _first(flags: Tensor) -> int | None:
    return int(flags.nonzero()[0]) if bool(flags.any()) else None


@torch.inference_mode()
def _logits(
    config: Plamo2Config,
    weights: Mapping[str, Tensor],
    ids: Tensor,
    state_dtype: torch.dtype | None,
) -> Tensor:
    """Of every token [T, V]. A state in another dtype is rounded behind each token."""
    model = reference(config, weights)
    state, logits = None, []
    for piece in ids.split(PIECE if state_dtype is None else 1):
        output = model.run(piece, state)
        state = output.state if state_dtype is None else _rounded(output.state, state_dtype)
        logits.append(output.logits)
    return torch.cat(logits)


def _rounded(state: SequenceState, dtype: torch.dtype) -> SequenceState:
    layers = [
        MambaState(layer.conv, layer.ssm.to(dtype).to(layer.ssm.dtype))
        if isinstance(layer, MambaState)
        else layer
        for layer in state.layers
    ]
    return replace(state, layers=layers)


def draw_departures(found: Sequence[Departure], window: int) -> Figure:
    """Error by position; a large mark where another token is the likeliest for the first time."""
    fig, ax = figure(9.0, 4.0)
    for index, departure in enumerate(found):
        style, every = style_of(index), departure.every
        errors = [error if error > ROUNDING else math.nan for error in departure.errors]
        (line,) = ax.plot([every * i for i in range(len(errors))], errors, label=departure.name)
        line.set(color=style.colour, linestyle=style.dash, marker=style.marker)
        line.set(markersize=4, markevery=(3 * index, 15))
        first = departure.first_other_token
        if first is not None:
            error = errors[first // every]
            ax.plot(first, error, color=style.colour, marker=style.marker, ms=10, mec="black")
    ax.axvline(window, color="0.6", linewidth=0.8)
    ax.text(window, 2e-4, f"W = {window:,} ", color="0.35", va="bottom", ha="right")
    ax.set(xlabel="position in the text", ylabel="relative error of the logits")
    ax.set(yscale="log", ylim=(1e-4, 30))
    ax.legend(loc="lower right", ncols=2)
    return fig


def describe_departures(found: Sequence[Departure]) -> str:
    """One line for `show`."""
    parts = [
        f"{d.name}: from token {d.begins} on, first other token behind {d.first_other_token}"
        for d in found
    ]
    return "Error of the logits by position in the text. " + "; ".join(parts)
