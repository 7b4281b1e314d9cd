"""From a checkpoint's tensors to the served model.

Invariant: every tensor is read once, cast and moved on its own, and lands in exactly one place;
what can be folded into a weight (norm offsets, -exp(A_log)) is folded here and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plamo_ref.config import Plamo2Config
from plamo_ref.intake.checkpoint_files import fail
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.kernels.ssm.twin import ScanParams
from plamo_ref.kernels.table import Kernels
from plamo_ref.linear import Linear
from plamo_ref.model import Attention, Layer, Mamba, Plamo2Model
from plamo_ref.quantization.quantize import stored
from plamo_ref.quantization.schemes import SCHEMES, is_quantized
from plamo_ref.quantization.weight import Weight
from plamo_ref.weights.checkpoint import Checkpoint

PRE_OFFSET, POST_MIXER_OFFSET, POST_MLP_OFFSET = 1.0, 1 / 5, 1 / 5**1.5

# A tensor's name → the tensor, cast and on its device; of a product also a `QuantizedWeight`.
Reader = Callable[[str], Any]


def load_model(
    checkpoint: Checkpoint,
    ops: Kernels,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: bool = False,
    quantization: str | None = None,
) -> Plamo2Model:
    """Read a checkpoint into a `Plamo2Model`.

    Its products are quantized as they come; a folder that is quantized already stays as it is.
    """
    scheme = SCHEMES[quantization] if quantization else None
    config = replace(checkpoint.config, quantization=quantization)
    if checkpoint.packed:
        return build_model(config, as_packed(checkpoint, dtype, device), ops)
    weights: dict[str, Any] = {}
    for name, tensor in checkpoint.tensors(dtype=dtype, device=device, progress=progress):
        weights[name] = stored(tensor, name, scheme)
        del tensor  # before the next one is read
    return build_model(config, weights.__getitem__, ops)


def as_packed(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Reader:
    """Reads a quantized folder: a product as it is stored, everything else plain."""
    scheme = SCHEMES[checkpoint.config.quantization or ""]

    def read(name: str) -> Weight:
        product = is_quantized(name, tuple(checkpoint.shape(name)), scheme)
        if name in checkpoint.packed and product:
            return checkpoint.read_quantized(name, device)
        return checkpoint.read(name, dtype=dtype, device=device)

    return read


@dataclass(frozen=True)
class StoredWeights:
    """A loader of a checkpoint's model."""

    checkpoint: Checkpoint
    quantization: str | None = None  # None: as the folder has them

    @property
    def config(self) -> Plamo2Config:
        """Of the model that is loaded.

        Raises:
            CheckpointError: the folder is quantized already, and otherwise.
        """
        config, wanted = self.checkpoint.config, self.quantization
        if wanted is not None and config.quantization not in (None, wanted):
            asked = f"weights to quantize by quantization={wanted!r}"
            fail(self.checkpoint.folder, "", asked, f"{config.quantization} already: leave it out")
        return replace(config, quantization=wanted or config.quantization)

    def __call__(self, ops: Kernels, dtype: torch.dtype, device: torch.device) -> Plamo2Model:
        scheme = self.config.quantization
        return load_model(self.checkpoint, ops, dtype=dtype, device=device, quantization=scheme)


def build_model(config: Plamo2Config, read: Reader, ops: Kernels) -> Plamo2Model:
    """Assemble the model from tensors with the checkpoint's names."""
    embedding = read("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else read("lm_head.weight")
    layers = [_layer(config, i, _under(read, i), ops) for i in range(config.num_hidden_layers)]
    gain = _gain(read("model.norm.weight"), PRE_OFFSET)
    return Plamo2Model(config, embedding, layers, gain, Linear(head, ops), ops)


def _under(read: Reader, layer: int) -> Reader:
    return lambda name: read(f"model.layers.layers.{layer}.{name}")


def _gain(stored: Tensor, offset: float) -> Tensor:
    return stored + offset


def _layer(config: Plamo2Config, index: int, read: Reader, ops: Kernels) -> Layer:
    is_mamba = config.is_mamba(index)
    return Layer(
        mixer=_mamba(config, read, ops) if is_mamba else _attention(config, index, read, ops),
        gate_up_proj=Linear(read("mlp.gate_up_proj.weight"), ops),
        down_proj=Linear(read("mlp.down_proj.weight"), ops),
        pre_mixer_gain=_gain(read("pre_mixer_norm.weight"), PRE_OFFSET),
        post_mixer_gain=_gain(read("post_mixer_norm.weight"), POST_MIXER_OFFSET),
        pre_mlp_gain=_gain(read("pre_mlp_norm.weight"), PRE_OFFSET),
        post_mlp_gain=_gain(read("post_mlp_norm.weight"), POST_MLP_OFFSET),
        eps=config.rms_norm_eps,
        ops=ops,
    )


def _attention(config: Plamo2Config, index: int, read: Reader, ops: Kernels) -> Attention:
    return Attention(
        kind=config.layer_kinds[index],
        window=config.window(index),
        qkv_proj=Linear(read("mixer.qkv_proj.weight"), ops),
        o_proj=Linear(read("mixer.o_proj.weight"), ops),
        q_gain=read("mixer.q_weight"),
        k_gain=read("mixer.k_weight"),
        ops=ops,
    )


def _mamba(config: Plamo2Config, read: Reader, ops: Kernels) -> Mamba:
    a_log = read("mixer.A_log")
    wide = torch.promote_types(a_log.dtype, torch.float32)
    return Mamba(
        head_size=config.hidden_size_per_head,
        in_proj=Linear(read("mixer.in_proj.weight"), ops),
        conv_weight=read("mixer.conv1d.weight")[:, 0, :],
        bcdt_proj=Linear(read("mixer.bcdt_proj.weight"), ops),
        selection=SelectionParams(
            B_gain=read("mixer.B_norm_weight"),
            C_gain=read("mixer.C_norm_weight"),
            dt_gain=read("mixer.dt_norm_weight"),
            dt_weight=read("mixer.dt_proj.weight"),
            eps=config.rms_norm_eps,
        ),
        scan=ScanParams(
            A=-torch.exp(a_log.to(wide)),
            D=read("mixer.D").to(wide),
            dt_bias=read("mixer.dt_bias").to(wide),
        ),
        out_proj=Linear(read("mixer.out_proj.weight"), ops),
        ops=ops,
    )
