"""What a checkpoint's config.json says, and everything that follows from it by arithmetic.

Invariant: a `Plamo2Config` that exists is valid; what is derived from it is computed here, once.
Built in notebooks/01_plamo2_anatomy.ipynb.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from plamo_ref.intake.config_values import ConfigError, check_layer_types, check_values, fields_of
from plamo_ref.intake.json_files import read_object
from plamo_ref.intake.quantization_config import scheme_of
from plamo_ref.intake.vision import language_config
from plamo_ref.quantization.schemes import stored_bytes

__all__ = ["ConfigError", "LayerKind", "Plamo2Config"]

LayerKind = Literal["mamba", "sliding_window", "full"]

VOCAB_ROW_MULTIPLE = 16  # lm_head rows are stored padded to a multiple of this
MIN_MAX_POSITION = 10 * 1024 * 1024  # informative only: never size a buffer from it
QK_NORM_EPS = 1e-6  # a constant of the architecture, independent of rms_norm_eps


@dataclass(frozen=True, kw_only=True)
class Plamo2Config:
    """The shape of a PLaMo 2 model. Field names and defaults are those of its config.json.

    Keys that have no effect on inference (`linear_type`, `image_*`, `eval_*`, expert settings …)
    are dropped by `from_dict`.
    """

    hidden_size: int = 4096
    num_hidden_layers: int = 32
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    hidden_size_per_head: int = 128  # of attention heads and of Mamba heads
    max_position_embeddings: int = MIN_MAX_POSITION
    model_max_length: int | None = None  # tokens that the model is good for; None: not said
    attention_window_size: int = 2048  # W: a query sees itself and W earlier keys
    full_attention_idx: tuple[int, ...] = ()  # attention layers without a window
    rope_theta: float = 10000.0  # of layers in full_attention_idx
    rope_local_theta: float = 10000.0  # of all other attention layers
    mamba_d_state: int = 64
    mamba_d_conv: int = 4
    mamba_num_heads: int = 64
    mamba_step: int = 2
    mamba_chunk_size: int = 256  # chunk of the parallel scan: no effect on the result
    mamba_enabled: bool = True
    intermediate_size: int = 13312
    vocab_size: int = 32000
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2  # a list of them: each ends a text
    pad_token_id: int | None = None
    quantization: str | None = None  # the scheme by which products are stored on the device

    def __post_init__(self) -> None:
        check_values(self)
        if self.hidden_size_per_head % 2:
            raise ConfigError("config.json: hidden_size_per_head must be even (RoPE pairs halves)")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config.json: num_attention_heads ({self.num_attention_heads}) must be a multiple "
                f"of num_key_value_heads ({self.num_key_value_heads})"
            )

    # --- reading and writing -------------------------------------------------------------------

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "config.json") -> "Plamo2Config":
        """Build from a parsed config.json. Keys without an effect are ignored; null: the default.

        Raises:
            ConfigError: not a PLaMo 2, a field with an impossible value, or a key that would
                change the numbers and cannot.
        """
        data = language_config(data, where)
        names = [f.name for f in fields(cls) if f.name != "quantization"]
        given = fields_of(data, names, where)
        try:
            config = cls(**given)
        except ConfigError as error:
            raise ConfigError(str(error).replace("config.json", where, 1)) from None
        config = replace(config, quantization=scheme_of(data.get("quantization_config"), where))
        check_layer_types(data.get("layer_types"), config.layer_kinds, where)
        positions = max(MIN_MAX_POSITION, config.max_position_embeddings)
        return replace(config, max_position_embeddings=positions)

    @classmethod
    def from_file(cls, path: str | Path) -> "Plamo2Config":
        """Read a config.json.

        Raises:
            ConfigError: the file is missing, is not JSON, or does not describe a PLaMo 2.
        """
        path = Path(path)
        return cls.from_dict(read_object(path, ConfigError), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The config.json of this model, with the names other engines look for."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        del data["quantization"]
        if self.model_max_length is None:
            del data["model_max_length"]
        return data | {
            "model_type": "plamo2",
            "architectures": ["Plamo2ForCausalLM"],
            "tokenizer_class": "Plamo2Tokenizer",
            "sliding_window": self.attention_window_size,
        }

    # --- layers --------------------------------------------------------------------------------

    def is_mamba(self, layer: int) -> bool:
        """Whether layer `layer` mixes tokens with Mamba rather than with attention."""
        if not self.mamba_enabled:
            return False
        half = self.mamba_step // 2
        if self.num_hidden_layers <= half:
            return layer != self.num_hidden_layers - 1
        return layer % self.mamba_step != half

    @cached_property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind, which is also the memory group, of each layer."""
        return tuple(
            "mamba"
            if self.is_mamba(i)
            else ("full" if i in self.full_attention_idx else "sliding_window")
            for i in range(self.num_hidden_layers)
        )

    def window(self, layer: int) -> int | None:
        """W of a sliding-window layer (W + 1 visible keys); None: every earlier key is visible."""
        return None if self.layer_kinds[layer] == "full" else self.attention_window_size

    def theta(self, layer: int) -> float:
        """RoPE base of an attention layer."""
        return self.rope_theta if self.layer_kinds[layer] == "full" else self.rope_local_theta

    def layers_of(self, kind: LayerKind) -> tuple[int, ...]:
        return tuple(i for i, k in enumerate(self.layer_kinds) if k == kind)

    # --- sizes ---------------------------------------------------------------------------------

    @property
    def dt_rank(self) -> int:
        return max(64, self.hidden_size // 16)

    @property
    def mamba_inner_size(self) -> int:
        return self.mamba_num_heads * self.hidden_size_per_head

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.hidden_size_per_head

    @property
    def kv_size(self) -> int:
        """Width of the keys (and of the values) of one token in one attention layer."""
        return self.num_key_value_heads * self.hidden_size_per_head

    @property
    def lm_head_rows(self) -> int:
        return math.ceil(self.vocab_size / VOCAB_ROW_MULTIPLE) * VOCAB_ROW_MULTIPLE

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the checkpoint, in the order of the forward pass."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for i in range(self.num_hidden_layers):
            mixer = self._mamba_shapes() if self.is_mamba(i) else self._attention_shapes()
            layer = {f"mixer.{name}": shape for name, shape in mixer.items()}
            layer["mlp.gate_up_proj.weight"] = (2 * self.intermediate_size, self.hidden_size)
            layer["mlp.down_proj.weight"] = (self.hidden_size, self.intermediate_size)
            for norm in ("pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm"):
                layer[f"{norm}.weight"] = (self.hidden_size,)
            shapes |= {f"model.layers.layers.{i}.{name}": s for name, s in layer.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.lm_head_rows, self.hidden_size)
        return shapes

    def _attention_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, head = self.hidden_size, self.hidden_size_per_head
        return {
            "qkv_proj.weight": (self.q_size + 2 * self.kv_size, hidden),
            "o_proj.weight": (hidden, self.q_size),
            "q_weight": (self.num_attention_heads, head),
            "k_weight": (self.num_key_value_heads, head),
        }

    def _mamba_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner, state = self.hidden_size, self.mamba_inner_size, self.mamba_d_state
        heads = self.mamba_num_heads
        return {
            "in_proj.weight": (2 * inner, hidden),
            "conv1d.weight": (inner, 1, self.mamba_d_conv),
            "bcdt_proj.weight": (self.dt_rank + 2 * state, inner),
            "dt_proj.weight": (heads, self.dt_rank),
            "dt_bias": (heads,),
            "A_log": (heads,),
            "D": (heads,),
            "dt_norm_weight": (self.dt_rank,),
            "B_norm_weight": (state,),
            "C_norm_weight": (state,),
            "out_proj.weight": (hidden, inner),
        }

    @cached_property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensor_shapes.values())

    def weight_bytes(self, itemsize: int = 2) -> int:
        """Bytes of all weights on the device; `itemsize` of those that are not quantized."""
        shapes = self.tensor_shapes.items()
        return sum(stored_bytes(n, shape, itemsize, self.quantization) for n, shape in shapes)

    def kv_bytes_per_token(self, kind: LayerKind, itemsize: int = 2) -> int:
        """Bytes of keys and values that one token adds to all layers of attention group `kind`."""
        return 2 * self.kv_size * itemsize * len(self.layers_of(kind)) if kind != "mamba" else 0

    def state_bytes(self, itemsize: int = 2, state_itemsize: int = 4) -> int:
        """Bytes of one state slot: conv (activation dtype) and SSM (float32) of all Mamba layers.

        Constant. A state of a byte a number has a scale, in float32, for each head.
        """
        conv = self.mamba_inner_size * (self.mamba_d_conv - 1) * itemsize
        ssm = self.mamba_inner_size * self.mamba_d_state * state_itemsize
        scales = 4 * self.mamba_num_heads if state_itemsize == 1 else 0
        return len(self.layers_of("mamba")) * (conv + ssm + scales)

    def ring_bytes(self, tokens: int, itemsize: int = 2) -> int:
        """Bytes beside a state slot of what a state has yet to take in: of so many tokens u and B
        in the activation dtype, and a step size a head. Of one token, none."""
        inputs = (self.mamba_inner_size + self.mamba_d_state) * itemsize
        token = inputs + self.mamba_num_heads * max(4, itemsize)
        return len(self.layers_of("mamba")) * (tokens * token if tokens > 1 else 0)

    def request_bytes(self, length: int, itemsize: int = 2, state_itemsize: int = 4) -> int:
        """Bytes that a sequence of `length` tokens must keep to go on decoding.

        A window keeps the last W tokens: the next query is the (W + 1)-th key.
        """
        in_window = min(length, self.attention_window_size)
        return (
            self.state_bytes(itemsize, state_itemsize)
            + length * self.kv_bytes_per_token("full", itemsize)
            + in_window * self.kv_bytes_per_token("sliding_window", itemsize)
        )
