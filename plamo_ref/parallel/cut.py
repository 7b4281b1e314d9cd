"""How a model is shared by the ranks of a tensor-parallel engine: the whole table.

    cut       a rank has whole heads (channels of an MLP) of the tensor: rows, so that it computes
              these heads' outputs, or columns, so that it reads these heads alone
    copied    every rank has all of it: the norms, which look at whole rows, and the embedding
    added     behind columns stand partial sums: the ranks add them before anybody reads them
    gathered  behind rows of the head stand logits of some tokens: the ranks put them together

in_proj's rows are z and x of one head, then of the next: cut by heads, a rank has both for each of
its own; cut as [all z | all x], it would have neither. bcdt's product is added before its norms,
which look at all of B, C and dt; dt_proj's rows are heads again. KV heads are cut while there are
enough of them; then ranks whose queries look at the same one have copies of it.

Bytes, for the 8B shape in bfloat16: the head is 819 MB of the 18 GB that a decode step reads, so it
is cut, and each rank sends its share of the logits, 200 kB a token in all. Of the embedding a step
reads a row a token: cut, it would save each of n ranks (1 - 1/n) · 819 MB of memory and cost a sum
over [T, D] more a step; it is copied.

Invariant: what a rank has is a PLaMo 2 with fewer heads, `of_rank`, so that kernels, caches and the
memory plan of one process serve a rank as they are; what is cut is on exactly one rank, and
together the ranks have everything.
Built in notebooks/14_several_gpus.ipynb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineError

QUERIES, KEYS = "num_attention_heads", "num_key_value_heads"
HEADS, CHANNELS = "mamba_num_heads", "intermediate_size"
VOCABULARY = "vocab_size"  # in equal shares, the last one padded: every size can be cut

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Rule:
    """What becomes of a tensor.

    Attributes:
        axis: the one that is cut: 0: rows, 1: columns; None: it is copied.
        along: what lies there, one after the other: fields of the config that count it.
        added: the product is a partial sum.
    """

    axis: int | None = None
    along: tuple[str, ...] = ()
    added: bool = False


COPIED = Rule()
TABLE: Mapping[str, Rule] = {
    "embed_tokens.weight": COPIED,
    "pre_mixer_norm.weight": COPIED,
    "post_mixer_norm.weight": COPIED,
    "pre_mlp_norm.weight": COPIED,
    "post_mlp_norm.weight": COPIED,
    "norm.weight": COPIED,
    # attention
    "qkv_proj.weight": Rule(0, (QUERIES, KEYS, KEYS)),
    "q_weight": Rule(0, (QUERIES,)),
    "k_weight": Rule(0, (KEYS,)),
    "o_proj.weight": Rule(1, (QUERIES,), added=True),
    # Mamba
    "in_proj.weight": Rule(0, (HEADS,)),
    "conv1d.weight": Rule(0, (HEADS,)),
    "bcdt_proj.weight": Rule(1, (HEADS,), added=True),
    "B_norm_weight": COPIED,
    "C_norm_weight": COPIED,
    "dt_norm_weight": COPIED,
    "dt_proj.weight": Rule(0, (HEADS,)),
    "dt_bias": Rule(0, (HEADS,)),
    "A_log": Rule(0, (HEADS,)),
    "D": Rule(0, (HEADS,)),
    "out_proj.weight": Rule(1, (HEADS,), added=True),
    # MLP
    "gate_up_proj.weight": Rule(0, (CHANNELS, CHANNELS)),
    "down_proj.weight": Rule(1, (CHANNELS,), added=True),
    # the vocabulary's product, whose logits are gathered
    "lm_head.weight": Rule(0, (VOCABULARY,)),
}


def rule_of(name: str) -> Rule:
    """The rule for a tensor with the checkpoint's name."""
    words = name.split(".")
    return TABLE[".".join(words[-2:] if words[-1] == "weight" else words[-1:])]


def share(count: int, rank: int, size: int) -> range:
    """Which of `count` things rank `rank` of `size` has; several have the same if there are less
    things than ranks."""
    if count < size:
        return range(rank * count // size, rank * count // size + 1)
    each = count // size
    return range(rank * each, (rank + 1) * each)


def share_of_vocabulary(rows: int, rank: int, size: int) -> range:
    """Rows of the head. Those of the last ranks may be fewer, or none: they are padded."""
    each = -(-rows // size)
    return range(min(rank * each, rows), min((rank + 1) * each, rows))


def of_rank(config: Plamo2Config, rank: int, size: int) -> Plamo2Config:
    """The model that a rank has, but for embedding and head: with fewer heads."""
    fields = (QUERIES, KEYS, HEADS, CHANNELS)
    counts: dict[str, Any] = {n: len(share(getattr(config, n), rank, size)) for n in fields}
    return replace(config, **counts)


def pieces(config: Plamo2Config, name: str, rank: int, size: int) -> tuple[Index, ...]:
    """The parts of a tensor that a rank has, to be put together along the rule's axis.

    Args:
        config: of the whole model.
        name: as in the checkpoint.
    """
    rule, shape = rule_of(name), config.tensor_shapes[name]
    if rule.axis is None:
        return ((slice(None),),)
    before: Index = (slice(None),) * rule.axis
    if rule.along == (VOCABULARY,):
        own = share_of_vocabulary(shape[rule.axis], rank, size)
        return ((slice(own.start, own.stop),),)
    counts = [getattr(config, field) for field in rule.along]
    unit = shape[rule.axis] // sum(counts)  # rows of a head
    found, start = [], 0
    for count in counts:
        own = share(count, rank, size)
        found.append((*before, slice((start + own.start) * unit, (start + own.stop) * unit)))
        start += count
    return tuple(found)


def check_cut(config: Plamo2Config, size: int) -> None:
    """Whether the model can be shared by so many ranks.

    Raises:
        EngineError: names what cannot be cut, and the sizes that can be had.
    """
    if obstacle := _obstacle(config, size):
        most = max(config.num_attention_heads, 2)
        possible = [n for n in range(1, most + 1) if not _obstacle(config, n)]
        raise EngineError(
            f"tensor_parallel_size={size}: {obstacle}; this model can be shared by "
            f"{', '.join(map(str, possible))}"
        )


def _obstacle(config: Plamo2Config, size: int) -> str:
    for name in (QUERIES, HEADS, CHANNELS):
        count = getattr(config, name)
        unused = name == HEADS and not config.layers_of("mamba")
        if count % size and not unused:
            return f"{name} ({count}) cannot be cut into {size} equal parts"
    keys = config.num_key_value_heads
    if keys % size and size % keys:
        return f"{KEYS} ({keys}) can neither be cut into {size} equal parts nor be copied evenly"
    return ""
