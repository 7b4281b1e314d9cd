"""The nouns of the engine that a reader builds, and the helpers of lessons before it.

Invariant: a `Memory` is NaN wherever nobody has written, so what is read too early shows.
Used by lesson 08b.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plamo_ref.batch import AttentionCache, LayerCache, MambaCache
from plamo_ref.config import QK_NORM_EPS
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.reference.attention import Attention
from plamo_ref.reference.functions import rms_norm, rope
from plamo_ref.reference.mamba import Mamba
from plamo_ref.reference.model import Plamo2Reference

Window = int | None  # an attention group is the rule of its memory: its window, or none


@dataclass
class Table:
    """The blocks of one request in one attention group; entry j is logical block first + j."""

    first: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Request:
    """What is known of a request, and how much of it is computed.

    Attributes:
        ids: the prompt, then what was made.
        computed: the first so many of them are in the caches.
        slot: its state slot; 0: it has none.
    """

    name: str
    ids: list[int]
    max_tokens: int = 16
    temperature: float = 0.0
    seed: int = 0
    stop_id: int | None = None
    computed: int = 0
    slot: int = 0
    tables: defaultdict[Window, Table] = field(default_factory=lambda: defaultdict(Table))

    def __post_init__(self) -> None:
        self.prompt_len = len(self.ids)

    @property
    def left(self) -> int:
        return len(self.ids) - self.computed

    @property
    def made(self) -> list[int]:
        return self.ids[self.prompt_len :]

    @property
    def is_done(self) -> bool:
        return len(self.made) >= self.max_tokens or self.stop_id in self.made


@dataclass
class Memory:
    """A pool of blocks for each attention group, one of slots, and what each layer keeps."""

    block_size: int
    pools: dict[Window, Pool]
    slots: Pool
    layers: list[LayerCache]

    @classmethod
    def of(cls, model: Plamo2Reference, blocks: int, slots: int, block_size: int = 4) -> "Memory":
        """So many places can be used. What nobody has written is NaN, and poisons all it meets."""
        layers: list[LayerCache] = []
        windows: list[Window] = []
        for mixer in (layer.mixer for layer in model.model.blocks()):
            if isinstance(mixer, Mamba):
                inner, width = mixer.conv1d.weight.shape[0], mixer.conv1d.kernel_size[0]
                ssm = (mixer.heads, mixer.head_size, mixer.d_state)
                conv = _poison(slots + 1, inner, width - 1)
                layers.append(MambaCache(conv, _poison(slots + 1, *ssm)))
            else:
                assert isinstance(mixer, Attention)
                windows.append(mixer.window)
                shape = (blocks + 1, block_size, mixer.kv_heads, mixer.head_size)
                layers.append(AttentionCache(_poison(*shape), _poison(*shape)))
        pools = {window: Pool("block", blocks + 1) for window in dict.fromkeys(windows)}
        return cls(block_size, pools, Pool("slot", slots + 1), layers)


def _poison(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=torch.float64)


@dataclass
class Batch:
    """One step, flat: the tokens of all its requests one after the other."""

    requests: list[Request]
    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    starts: Tensor  # [R + 1] where each request's tokens start

    def parts(self) -> Iterator[tuple[Request, slice]]:
        """Each request with its rows of T."""
        bounds = self.starts.tolist()
        for request, start, end in zip(self.requests, bounds[:-1], bounds[1:], strict=True):
            yield request, slice(start, end)


@dataclass
class Engine:
    """A model, its memory, two limits and two queues (running: oldest first)."""

    model: Plamo2Reference
    memory: Memory
    seats: int = 4
    budget: int = 16
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)

    def add(self, r: Request) -> None:
        """Let it wait, unless it could never run, even alone.

        Raises:
            EngineError: its tokens need more blocks than there are.
        """
        needed = math.ceil((r.prompt_len + r.max_tokens - 1) / self.memory.block_size)
        most = min(pool.capacity for pool in self.memory.pools.values())
        if needed > most:
            raise EngineError(f"request {r.name} needs {needed} blocks; there are {most} in all")
        self.waiting.append(r)


def first_needed(computed: int, window: Window, block_size: int) -> int:
    """The first logical block that a coming query can see (lesson 06)."""
    return 0 if window is None else max(0, computed - window) // block_size


def project(mixer: Attention, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, D] → q [T, H, P], k and v [T, KV heads, P]; q and k normed and rotated (lesson 02)."""
    parts = mixer.qkv_proj(x).split((mixer.q_size, mixer.kv_size, mixer.kv_size), dim=-1)
    q, k, v = (part.unflatten(-1, (-1, mixer.head_size)) for part in parts)
    q = rope(rms_norm(q, mixer.q_weight, QK_NORM_EPS), positions, mixer.theta)
    k = rope(rms_norm(k, mixer.k_weight, QK_NORM_EPS), positions, mixer.theta)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """q [Tq, H, P], k and v [Tk, KV heads, P], seen [Tq, Tk] → [Tq, H, P] (lesson 02)."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhp,khp->hqk", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khp->qhp", weights, v)


def layers_of(model: Plamo2Reference, memory: Memory) -> Iterator[tuple[Any, LayerCache]]:
    """The layers (`mixer`, `mlp`, four norms), first to last, each with what it keeps."""
    yield from zip(model.model.blocks(), memory.layers, strict=True)


def logits_of(model: Plamo2Reference, hidden: Tensor) -> Tensor:
    """The last layer's rows [R, D] → [R, V] (lesson 04)."""
    head: nn.Module = model.lm_head or model.model.embed_tokens
    weight = head.weight
    assert isinstance(weight, Tensor)
    return (model.model.norm(hidden) @ weight.T)[:, : model.config.vocab_size]
