"""Which layers a rank has: the stages of a pipeline, and the model that one of them is.

A stage is a range of layers with their caches. It takes the stream [T, D] from the stage before it
and passes it on; the first one has the embedding, the last one the head. Rank 0, the driver, is in
the last stage: there are the logits, and there tokens are chosen, so no logits travel. Of n ranks a
stage, rank r is number r mod n of stage (stages - 1 - r div n).

Invariant: layer by layer a stage computes what the whole model computes there; all stages have as
many blocks and slots, since the driver's books are kept for all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, LayerCache
from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.config import EngineError
from plamo_ref.model import Plamo2Model

LAYER = re.compile(r"(?<=^model\.layers\.layers\.)\d+")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KINDS: tuple[LayerKind, ...] = ("mamba", "sliding_window", "full")


@dataclass(frozen=True, kw_only=True)
class StageConfig(Plamo2Config):
    """Some layers of a model, counted from 0 again."""

    mamba_layers: tuple[bool, ...]

    def is_mamba(self, layer: int) -> bool:
        """As in the whole model."""
        return self.mamba_layers[layer]


@dataclass(frozen=True, kw_only=True)
class WidestStage(Plamo2Config):
    """What memory is planned by: of each kind as many layers as any stage has."""

    counts: Mapping[LayerKind, int]

    def layers_of(self, kind: LayerKind) -> tuple[int, ...]:
        """So many of them, whichever they are."""
        return tuple(range(self.counts[kind]))


def layers_of_stage(num_layers: int, stage: int, stages: int) -> range:
    """The layers of a stage; of two stages one has a layer more at most."""
    return range(stage * num_layers // stages, (stage + 1) * num_layers // stages)


def check_stages(config: Plamo2Config, stages: int) -> None:
    """Raises EngineError: there are fewer layers than stages."""
    if stages > config.num_hidden_layers:
        raise EngineError(
            f"pipeline_parallel_size={stages}: the model has {config.num_hidden_layers} layers, "
            "and each stage needs one; lower it"
        )


def of_stage(config: Plamo2Config, stage: int, stages: int) -> Plamo2Config:
    """The layers of a stage as a config."""
    if stages == 1:
        return config
    own = layers_of_stage(config.num_hidden_layers, stage, stages)
    full = tuple(i - own.start for i in config.full_attention_idx if i in own)
    changed = {"num_hidden_layers": len(own), "full_attention_idx": full}
    mamba = tuple(config.is_mamba(i) for i in own)
    return StageConfig(**asdict(config) | changed, mamba_layers=mamba)


def widest(config: Plamo2Config, stages: int) -> Plamo2Config:
    """What all stages can plan by."""
    if stages == 1:
        return config
    parts = [of_stage(config, stage, stages) for stage in range(stages)]
    counts = {kind: max(len(part.layers_of(kind)) for part in parts) for kind in KINDS}
    return WidestStage(**asdict(config), counts=counts)


def is_on(config: Plamo2Config, name: str, stage: int, stages: int) -> bool:
    """Whether a stage has a tensor of the whole model."""
    if layer := LAYER.search(name):
        return int(layer[0]) in layers_of_stage(config.num_hidden_layers, stage, stages)
    first, last = stage == 0, stage == stages - 1
    if name == EMBEDDING:
        return first or (last and config.tie_word_embeddings)
    return last or name != HEAD


def name_in_whole(config: Plamo2Config, name: str, stage: int, stages: int) -> str:
    """The whole model's name of what is `name` in a stage."""
    start = layers_of_stage(config.num_hidden_layers, stage, stages).start
    return LAYER.sub(lambda layer: str(int(layer[0]) + start), name)


class StageModel(Plamo2Model):
    """The layers of a stage, between the stages before and behind it."""

    is_first = is_last = False
    incoming: Tensor  # [most tokens, D] the stream as the stage before has left it
    outgoing: Tensor  # [most tokens, D] as this one has left it

    def set_place(self, stage: int, stages: int, most_tokens: int) -> None:
        """Where it is, and memory for the stream of a step of so many tokens."""
        self.is_first, self.is_last = stage == 0, stage == stages - 1
        self.incoming = self.embedding.new_empty(most_tokens, self.config.hidden_size)
        self.outgoing = torch.empty_like(self.incoming)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """As the whole model; what comes out counts in the last stage alone."""
        tokens = len(batch.token_ids)
        stream = self.embedding[batch.token_ids] if self.is_first else self.incoming[:tokens]
        stream, x = self.through_layers(stream, batch, caches)
        if not self.is_last:
            self.outgoing[:tokens] = stream
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, D] → [n, V] in the last stage, [n, 0] in others."""
        return super().logits(hidden) if self.is_last else hidden[:, :0]
