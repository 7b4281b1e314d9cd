"""From a checkpoint, or from random numbers, to the model of one rank.

Invariant: a rank reads its own slices of a file and nothing else; random weights are those of the
model in one process, cut; where the table says "added" or "gathered" a `Linear` does so, and the
model knows nothing of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineError
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.table import Kernels
from plamo_ref.linear import Linear
from plamo_ref.model import Attention, Layer, Mamba, Plamo2Model
from plamo_ref.parallel.cut import TABLE, of_rank, pieces, rule_of, share_of_vocabulary
from plamo_ref.parallel.group import Group
from plamo_ref.parallel.stage import HEAD, StageModel, is_on, name_in_whole, of_stage
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES, is_quantized
from plamo_ref.quantization.weight import Activations, QuantizedWeight, Weight
from plamo_ref.weights.checkpoint import READERS
from plamo_ref.weights.device import read_ahead
from plamo_ref.weights.loading import Reader, StoredWeights, as_packed, build_model
from plamo_ref.weights.random import random_reader

Part = TypeVar("Part", bound=Attention | Mamba | Layer)


@dataclass(frozen=True)
class AddedLinear(Linear):
    """Columns of a weight: the product is a partial sum until the ranks have added theirs."""

    group: Group

    @property
    def takes_quantized(self) -> bool:
        """A rank has a part of each row, and its scale is that of the whole one."""
        return False

    def __call__(self, x: Activations) -> Tensor:
        """[T, in of this rank] → [T, out]."""
        return self.group.add(super().__call__(x))

    def parts(self, x: Activations) -> Tensor:
        """The same as one part [1, T, out]; several parts of a rank, which are wider, are added
        first and stay wide: their sum over the ranks is rounded once, by its reader."""
        own = super().parts(x)
        return self.group.add(own[0] if len(own) == 1 else own.sum(0))[None]

    def quantized(self, x: Activations) -> Activations:
        """The scale of a token is that of its whole row, of which a rank has a part."""
        assert isinstance(self.weight, QuantizedWeight)
        assert isinstance(x, Tensor)
        if not self.weight.quantized_activations:
            return x
        most = x.abs().amax(1).to(torch.promote_types(x.dtype, torch.float32))
        return self.ops.quantize_tokens(x, self.group.most(most))


@dataclass(frozen=True)
class GatheredLinear(Linear):
    """Some tokens' rows of the head, as many on each rank."""

    group: Group

    def __call__(self, x: Activations) -> Tensor:
        """[n, D] → logits of all tokens, [n, V or a little more]."""
        own = super().__call__(x)
        return self.group.gather(own).movedim(0, 1).flatten(1)


def load_stored(
    weights: StoredWeights,
    group: Group,
    ops: Kernels,
    dtype: torch.dtype,
    device: torch.device,
) -> Plamo2Model:
    """A rank's slices of a checkpoint's tensors as its model.

    A weight that is quantized is read whole: its scales are those of whole rows.
    """
    config, checkpoint = weights.config, weights.checkpoint
    scheme = SCHEMES[config.quantization] if config.quantization else None

    def read(name: str) -> Tensor:
        if is_quantized(name, config.tensor_shapes[name], scheme):
            return checkpoint.read(name)
        return own_part(config, name, group, lambda index: checkpoint.read_slice(name, index))

    if checkpoint.packed:
        whole = as_packed(checkpoint, dtype, device)

        def packed(name: str) -> Weight:
            weight = whole(name)
            if isinstance(weight, QuantizedWeight):
                return own_rows_or_columns(config, name, group, weight)
            return own_part(config, name, group, weight.__getitem__).clone()

        return assemble(config, packed, group, ops)

    def kept(name: str, tensor: Tensor) -> Weight:
        if is_quantized(name, config.tensor_shapes[name], scheme):
            assert scheme is not None
            return own_rows_or_columns(config, name, group, quantize(tensor, scheme))
        return tensor

    if device.type != "cuda":
        return assemble(config, lambda n: kept(n, read(n).to(device, dtype)), group, ops)
    names = [n for n in checkpoint.names if is_on(config, n, group.stage, group.stages)]
    tensors: dict[str, Weight] = {}
    for name, tensor in read_ahead(names, read, dtype, device, READERS):
        tensors[name] = kept(name, tensor)
        del tensor  # before the next one is read
    return assemble(config, tensors.__getitem__, group, ops)


def load_random(
    config: Plamo2Config,
    seed: int,
    group: Group,
    ops: Kernels,
    dtype: torch.dtype,
    device: torch.device,
) -> Plamo2Model:
    """A rank's slices of random weights. All ranks draw all tensors whole, in the same order."""
    draw = random_reader(config, dtype, device, seed)
    tensors: dict[str, Weight] = {}

    for name in order_of_reading(config):
        whole = draw(name)
        if is_on(config, name, group.stage, group.stages):
            if isinstance(whole, QuantizedWeight):
                tensors[name] = own_rows_or_columns(config, name, group, whole)
            else:
                tensors[name] = own_part(config, name, group, whole.__getitem__).clone()
        del whole  # before the next one is drawn
    return assemble(config, tensors.__getitem__, group, ops)


def order_of_reading(config: Plamo2Config) -> list[str]:
    """The tensors in the order in which `build_model` asks for them."""
    names: list[str] = []

    def read(name: str) -> Tensor:
        names.append(name)
        return torch.empty(config.tensor_shapes[name])  # which nobody touches, so it costs nothing

    build_model(config, read, TORCH)
    return names


def own_part(
    config: Plamo2Config,
    name: str,
    group: Group,
    part: Callable[[tuple[slice, ...]], Tensor],
) -> Tensor:
    """What a rank has of a tensor whose parts `part` gives."""
    found = [part(index) for index in pieces(config, name, group.rank, group.size)]
    return found[0] if len(found) == 1 else torch.cat(found, rule_of(name).axis or 0)


def own_rows_or_columns(
    config: Plamo2Config, name: str, group: Group, whole: QuantizedWeight
) -> QuantizedWeight:
    """What a rank has of a quantized weight: scales are cut with their rows and groups.

    Raises:
        EngineError: a cut would go through a group.
    """
    parts = [whole.part(index) for index in pieces(config, name, group.rank, group.size)]
    if None in parts:
        raise EngineError(
            f"tensor_parallel_size={group.size}: {name} is quantized in groups of {whole.group} "
            f"columns, and {whole.shape[1]} cannot be cut into {group.size} shares of whole ones; "
            'lower it, or take quantization="int8"'
        )
    return QuantizedWeight.joined([part for part in parts if part is not None])


def assemble(config: Plamo2Config, read: Reader, group: Group, ops: Kernels) -> Plamo2Model:
    """The model of a rank.

    Args:
        config: of the whole model.
        read: a tensor's name → what this rank has of it.
    """
    stage = (group.stage, group.stages)

    def own(name: str) -> Tensor:
        name = name_in_whole(config, name, *stage)
        if is_on(config, name, *stage):
            return read(name)
        return read("model.norm.weight").new_empty(0, config.hidden_size)  # a table of no rows

    local = of_stage(of_rank(config, group.rank, group.size), *stage)
    model = build_model(local, own, ops)
    layers = [
        replace(_adding(layer, group), mixer=_adding(layer.mixer, group)) for layer in model.layers
    ]
    head = model.lm_head
    if group.size > 1 and is_on(config, HEAD, *stage):
        head = GatheredLinear(_head_of(config, model, group), ops, group)
    parts = (model.config, model.embedding, layers, model.norm_gain, head, ops)
    return Plamo2Model(*parts) if group.stages == 1 else StageModel(*parts)


def _adding(part: Part, group: Group) -> Part:
    """A layer, or a mixer, whose products are added where the table says so."""
    changed: dict[str, Any] = {}
    for field in fields(part):
        rule, value = TABLE.get(f"{field.name}.weight"), getattr(part, field.name)
        if rule is not None and rule.added:
            changed[field.name] = AddedLinear(value.weight, value.ops, group)
    return replace(part, **changed)


def _head_of(config: Plamo2Config, model: Plamo2Model, group: Group) -> Tensor:
    """A rank's rows of the head, as many as every other rank has."""
    tied = config.tie_word_embeddings
    rows = config.vocab_size if tied else config.lm_head_rows
    own, each = share_of_vocabulary(rows, group.rank, group.size), -(-rows // group.size)
    weight = model.lm_head.weight
    assert isinstance(weight, Tensor)
    if tied:
        weight = weight[own.start : own.stop]  # the embedding is there anyway
    missing = each - len(own)
    return weight if not missing else F.pad(weight, (0, 0, 0, missing))
