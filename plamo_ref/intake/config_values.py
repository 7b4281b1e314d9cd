"""What the keys of a config.json mean, whoever wrote it, and which values they may have.

Invariant: no key that changes the numbers is dropped. It has its effect, or it says what is the
case anyway, or it is refused by name. A size that is let through can be counted up to.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.conversions import original_of
from plamo_ref.intake.values import shown


class ConfigError(PlamoRefError, ValueError):
    """A config.json that does not describe a PLaMo 2; the message names the field."""


SIZES: Mapping[str, tuple[int, int]] = {  # least and most; far beyond every model of the family
    "hidden_size": (1, 1 << 17),
    "num_hidden_layers": (1, 1 << 10),
    "num_attention_heads": (1, 1 << 12),
    "num_key_value_heads": (1, 1 << 12),
    "hidden_size_per_head": (1, 1 << 12),
    "max_position_embeddings": (1, 1 << 53),
    "attention_window_size": (1, 1 << 40),
    "mamba_d_state": (1, 1 << 12),
    "mamba_d_conv": (2, 1 << 6),
    "mamba_num_heads": (1, 1 << 14),
    "mamba_step": (2, 1 << 20),
    "mamba_chunk_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 20),
    "vocab_size": (1, 1 << 28),
}
NUMBERS = {"rms_norm_eps": 1.0, "rope_theta": 1e15, "rope_local_theta": 1e15}  # above 0, at most
FLAGS = ("tie_word_embeddings", "mamba_enabled")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_STOPS = 1024

# What others call a field. Where both names are given they must agree.
OTHER_NAMES = {
    "sliding_window": "attention_window_size",
    "window_size": "attention_window_size",
    "head_dim": "hidden_size_per_head",
    "rope_local_base_freq": "rope_local_theta",
}


OTHER_MODELS = {  # of the makers: other architectures
    "plamo": " (the first PLaMo, or an embedding model)",
    "plamo3": " (PLaMo 3: no Mamba, another attention)",
}


@dataclass(frozen=True)
class Foreign:
    """A key that PLaMo 2 does not have: fine with a neutral value, else something unknown."""

    neutral: tuple[object, ...]
    why: str


_ROPE = "RoPE here is plain: all of a head, no scaling"
_ACTIVATION = Foreign(("silu", "swish"), "PLaMo 2's gates are SiLU")
_BIAS = Foreign((False,), "PLaMo 2's projections have no bias")
_SCALE = Foreign((1,), "PLaMo 2 scales neither embeddings nor logits")
_CAP = Foreign((), "PLaMo 2 caps no logits")
_QUANTIZED = Foreign(
    (), "MLX's quantized weights are not read: take the original in bfloat16 or float32"
)
FOREIGN: Mapping[str, Foreign] = {
    "rope_scaling_factor": Foreign((1,), _ROPE),
    "partial_rotary_factor": Foreign((1,), _ROPE),
    "rotary_pct": Foreign((1,), _ROPE),
    "rope_interleaved": Foreign((False,), "RoPE here pairs the two halves of a head"),
    "use_sliding_window": Foreign((True,), "name layers without a window in full_attention_idx"),
    "sliding_window_pattern": Foreign((), "name layers without a window in full_attention_idx"),
    "is_causal": Foreign((True,), "a token sees what came before it, and nothing else"),
    "hidden_act": _ACTIVATION,
    "hidden_activation": _ACTIVATION,
    "activation_function": _ACTIVATION,
    "attention_bias": _BIAS,
    "mlp_bias": _BIAS,
    "use_bias": _BIAS,
    "mamba_proj_bias": _BIAS,
    "mamba_conv_bias": _BIAS,
    "logit_scale": _SCALE,
    "logits_scaling": _SCALE,
    "embedding_multiplier": _SCALE,
    "residual_multiplier": _SCALE,
    "attn_logit_softcapping": _CAP,
    "final_logit_softcapping": _CAP,
    "time_step_limit": Foreign((), "PLaMo 2 does not clamp the time step"),
    "quantization": _QUANTIZED,
}

ROPE_KEYS = ("rope_parameters", "rope_scaling")
ROPE_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_theta"}
LAYER_TYPES = {  # Transformers' names for a layer's kind; "attention" leaves the window open
    "mamba": ("mamba",),
    "mamba2": ("mamba",),
    "sliding_attention": ("sliding_window",),
    "full_attention": ("full",),
    "attention": ("sliding_window", "full"),
}


# --- from a file ---------------------------------------------------------------------------------


def fields_of(data: Mapping[str, Any], known: Iterable[str], where: str) -> dict[str, Any]:
    """The fields of a `Plamo2Config` that a parsed config.json gives; null means the default.

    Raises:
        ConfigError: not a PLaMo 2, or a key that changes the numbers and cannot have its effect.
    """
    kind = data.get("model_type")
    if kind != "plamo2":
        told = OTHER_MODELS.get(kind, "") if isinstance(kind, str) else ""
        raise ConfigError(f"{where}: model_type is {shown(kind)}{told}, expected 'plamo2'")
    _check_architecture(data, where)
    known = set(known)
    given = {k: v for k, v in data.items() if k in known and v is not None}
    # A null token id is meaningful (there is no such token); elsewhere null means "default".
    given |= {k: None for k in TOKEN_IDS if k in data and data[k] is None}
    for name, ours in OTHER_NAMES.items():
        _agree(given, ours, data.get(name), name, where)
    for name, foreign in FOREIGN.items():
        value = data.get(name)
        if value is not None and not any(_same(value, fine) for fine in foreign.neutral):
            why = foreign.why + (f", {original_of(where)}" if foreign is _QUANTIZED else "")
            raise ConfigError(f"{where}: {name}={shown(value)} cannot be honoured: {why}")
    _read_rope(data, given, where)
    for name in ("full_attention_idx", "eos_token_id"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    return given


def _check_architecture(data: Mapping[str, Any], where: str) -> None:
    """An embedding model or a classifier has the same tensors, and other numbers."""
    named = data.get("architectures")
    if named is None:
        return
    if not isinstance(named, list) or not any("ForCausalLM" in str(name) for name in named):
        raise ConfigError(
            f"{where}: architectures is {shown(named)}; this engine continues texts "
            "(Plamo2ForCausalLM) and does nothing else"
        )


def _same(value: object, other: object) -> bool:
    """1 is 1.0, and not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _agree(given: dict[str, Any], ours: str, value: Any, name: str, where: str) -> None:
    """Enter what the key `name` says of our field."""
    if value is not None and not _same(given.setdefault(ours, value), value):
        raise ConfigError(
            f"{where}: {name} is {shown(value)}, but {ours} is {shown(given[ours])}; "
            "both mean the same, so keep one"
        )


def _read_rope(data: Mapping[str, Any], given: dict[str, Any], where: str) -> None:
    """Bases of RoPE, also where Transformers 5 writes them: in `rope_parameters`."""
    for key in ROPE_KEYS:
        rope = data.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ConfigError(f"{where}: {key} must be an object or null, not {shown(rope)}")
        by_kind = rope if rope and rope.keys() <= ROPE_KINDS.keys() else {"full_attention": rope}
        for kind, told in by_kind.items():
            name = key if told is rope else f"{key}.{kind}"
            if not isinstance(told, dict):
                raise ConfigError(f"{where}: {name} must be an object, not {shown(told)}")
            theta = _plain_rope(told, name, where)
            _agree(given, ROPE_KINDS[kind], theta, f"{name}.rope_theta", where)
    if "rope_theta" in given:
        # As in the makers' own loader: a config with only rope_theta means it for every layer.
        given.setdefault("rope_local_theta", given["rope_theta"])


def _plain_rope(rope: Mapping[str, Any], name: str, where: str) -> Any:
    """rope_theta of an object that asks for nothing else."""
    neutral = {
        "rope_type": "default",
        "type": "default",
        "factor": 1,
        "partial_rotary_factor": 1,
        "attention_factor": 1,
    }
    for key, value in rope.items():
        if key == "rope_theta" or value is None:
            continue
        if key not in neutral or not _same(value, neutral[key]):
            raise ConfigError(f"{where}: {name}.{key}={shown(value)} cannot be honoured: {_ROPE}")
    return rope.get("rope_theta")


def check_layer_types(told: Any, kinds: Iterable[str], where: str) -> None:
    """Hold the list `layer_types`, if there is one, against the kinds of the layers.

    Raises:
        ConfigError: it tells of other layers.
    """
    if told is None:
        return
    kinds = tuple(kinds)
    if not isinstance(told, list) or len(told) != len(kinds):
        raise ConfigError(
            f"{where}: layer_types must be a list of {len(kinds)} kinds, not {shown(told)}"
        )
    for layer, (name, kind) in enumerate(zip(told, kinds, strict=True)):
        if not isinstance(name, str) or kind not in LAYER_TYPES.get(name, ()):
            raise ConfigError(
                f"{where}: layer_types says that layer {layer} is {shown(name)}, but mamba_step "
                f"and full_attention_idx make it {kind!r}"
            )


# --- values --------------------------------------------------------------------------------------


def check_values(config: Any) -> None:
    """Hold the fields of a `Plamo2Config` against what they may be.

    Raises:
        ConfigError: names the field, its value, and what is possible.
    """
    for name, (least, most) in SIZES.items():
        value = getattr(config, name)
        if not _is_whole(value) or not least <= value <= most:
            raise _wrong(name, shown(value), f"an integer from {least:,} to {most:,}")
    for name, top in NUMBERS.items():
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= top or not math.isfinite(value):
            raise _wrong(name, shown(value), f"a number above 0 and at most {top:g}")
    for name in FLAGS:
        if not isinstance(getattr(config, name), bool):
            raise _wrong(name, shown(getattr(config, name)), "true or false")
    for name in TOKEN_IDS:
        check_ids(name, getattr(config, name), config.vocab_size, several=name == "eos_token_id")
    most = config.model_max_length
    if most is not None and (not _is_whole(most) or most < 1):
        raise _wrong("model_max_length", shown(most), "a positive integer or null")
    _check_full_attention(config.full_attention_idx, config.num_hidden_layers)


def check_ids(name: str, value: Any, vocab_size: int, *, several: bool) -> None:
    """Hold one token id (or, where there may be `several`, a tuple of them) against the vocabulary.

    Raises:
        ConfigError: it is no such id.
    """
    listed = several and isinstance(value, tuple)
    ids = value if listed else () if value is None else (value,)
    if len(ids) > MAX_STOPS:
        raise _wrong(name, f"{len(ids):,} ids", f"at most {MAX_STOPS:,} ids")
    for token in ids:
        if not _is_whole(token) or not 0 <= token < vocab_size:
            wanted = "an id, a list of ids," if several else "an id"
            within = f"from 0 to {vocab_size - 1:,} (vocab_size is {vocab_size:,})"
            raise _wrong(name, shown(token), f"{wanted} or null; ids go {within}")


def _check_full_attention(layers: Any, count: int) -> None:
    name = "full_attention_idx"
    if not isinstance(layers, tuple):
        raise _wrong(name, shown(layers), "a list of layer numbers")
    if len(layers) > count:
        raise _wrong(name, f"a list of {len(layers):,}", f"at most {count:,} layer numbers")
    for layer in layers:
        if not _is_whole(layer) or not 0 <= layer < count:
            raise ConfigError(
                f"config.json: {name} names layer {shown(layer)}; there are layers 0 to {count - 1}"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(name: str, found: str, wanted: str) -> ConfigError:
    return ConfigError(f"config.json: {name} must be {wanted}, not {found}")
