"""What the model is told about one step: one vector of integers on its device, and its views.

    requests   decodes, then prompts       seq_lens, has_past, state_slots, first blocks  [R]
    tokens     decodes, then the prompts'  token_ids, positions, slot mappings            [T]
    the rest   where tokens start [R + 1], block tables [R, width], rows of logits [T],
               photographs: moments in the middle of a prompt whose state is kept [F, 3]

A step, a recording of one, a compiled graph and a dry run are the same vector: only who made it,
and on which device, differs. A `Room` says how long each part is. A step may be laid out in more
room than it needs, and padding is 0 everywhere: token 0 at position 0, written to the null block,
of a request of length 0 with the null slot.

Invariant: a batch describes a step completely; together with the caches it decides every result.
Requests with one new token and a past (decodes) come first, the others (prefills) after them, so
that each kind is one contiguous slice of every part; padding reaches no row but its own.
Built in notebooks/07_continuous_batching.ipynb.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from plamo_ref.config import LayerKind


@dataclass(frozen=True)
class Room:
    """How much a step's vector has room for."""

    decodes: int  # requests, each with one token
    prompts: int  # requests
    tokens: int  # of all prompts together
    widths: tuple[tuple[LayerKind, int], ...]  # of the block table of each attention group
    photographs: int = 0

    @property
    def num_requests(self) -> int:
        return self.decodes + self.prompts

    @property
    def num_tokens(self) -> int:
        return self.decodes + self.tokens

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The parts of the vector, in their order."""
        of_tokens, of_requests = (self.num_tokens,), (self.num_requests,)
        shapes: dict[str, tuple[int, ...]] = {
            "token_ids": of_tokens,
            "positions": of_tokens,
            "logits_rows": of_tokens,
            "seq_lens": of_requests,
            "has_past": of_requests,
            "state_slots": of_requests,
            "query_start_loc": (self.num_requests + 1,),
            "prefill_start_loc": (self.prompts + 1,),
            "late_rows": of_requests,
            "late_from": of_requests,
            "photographs": (self.photographs, 3),
        }
        for kind, width in self.widths:
            shapes[f"{kind}/slot_mapping"] = of_tokens
            shapes[f"{kind}/first_block"] = of_requests
            shapes[f"{kind}/block_table"] = (self.num_requests, width)
        return shapes

    @cached_property
    def size(self) -> int:
        """Integers in the vector."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes.values()]

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """The views of a vector of this room, by name."""
        pieces = zip(self.shapes.items(), vector.split(self._sizes), strict=True)
        return {name: x if len(shape) == 1 else x.view(shape) for (name, shape), x in pieces}

    def arrays(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The same of a vector on the host, to be written."""
        places = zip(self.shapes.items(), pairwise(accumulate(self._sizes, initial=0)), strict=True)
        return {name: vector[a:b].reshape(shape) for (name, shape), (a, b) in places}


@dataclass(frozen=True)
class GroupBatch:
    """Where the keys and values of one attention group are."""

    block_table: Tensor  # [R, M] physical blocks; unused entries are the null block
    first_block: Tensor  # [R] logical number of each row's first entry
    slot_mapping: Tensor  # [T] row (block · block_size + offset) of each new token


@dataclass(frozen=True)
class ForwardBatch:
    """One step: T tokens of R requests. All tensors are int64 and views of `vector`."""

    room: Room
    vector: Tensor
    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    query_start_loc: Tensor  # [R + 1] where each request's tokens start
    prefill_start_loc: Tensor  # [prompts + 1] the same, counted from the first prompt's first token
    seq_lens: Tensor  # [R] tokens of each request after the step
    has_past: Tensor  # [R] 1: something was computed before the step
    state_slots: Tensor  # [R]
    groups: Mapping[LayerKind, GroupBatch]
    logits_rows: Tensor  # [T]: the rows of T whose logits are wanted come first
    late_rows: Tensor  # [R]: the tokens that only the device knows yet come first,
    late_from: Tensor  # [R]: and where they are among those of the step before
    photographs: Tensor  # [F, 3]: of which prompt, behind how many tokens of it, into which slot
    counts: Tensor | None = None  # [6] on the CPU: `room` for compiled layers, which see no numbers

    @classmethod
    def over(cls, room: Room, vector: Tensor) -> "ForwardBatch":
        """The batch that a vector of `room.size` integers is."""
        parts = room.parts(vector)
        groups = {
            kind: GroupBatch(
                parts.pop(f"{kind}/block_table"),
                parts.pop(f"{kind}/first_block"),
                parts.pop(f"{kind}/slot_mapping"),
            )
            for kind, _ in room.widths
        }
        return cls(room=room, vector=vector, groups=groups, **parts)

    @classmethod
    def empty(cls, room: Room, device: torch.device) -> "ForwardBatch":
        """A batch of padding, to be written over."""
        with torch.inference_mode(False):  # steps are written into it wherever it was made
            return cls.over(room, torch.zeros(room.size, dtype=torch.int64, device=device))

    @property
    def num_decodes(self) -> int:
        """Requests (and tokens) at the front that decode."""
        return self.room.decodes

    @property
    def num_requests(self) -> int:
        return self.room.num_requests

    @property
    def has_prefills(self) -> bool:
        return self.room.prompts > 0

    @property
    def decodes(self) -> slice:
        """Of requests and, since each has one token, of tokens."""
        return slice(0, self.num_decodes)

    @property
    def prefills(self) -> slice:
        """Of requests."""
        return slice(self.num_decodes, self.num_requests)

    def both(self, decode: Callable[[], Tensor], prefill: Callable[[], Tensor]) -> Tensor:
        """The results of its decodes and its prefills, as far as there are any, in their order."""
        results = [decode()] if self.num_decodes else []
        results += [prefill()] if self.has_prefills else []
        return results[0] if len(results) == 1 else torch.cat(results)


@dataclass(frozen=True)
class AttentionCache:
    """Keys and values of one layer: [blocks, block_size, KV heads, P] each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class MambaCache:
    """The state slots of one layer."""

    conv: Tensor  # [slots, H·P, K-1]
    ssm: Tensor  # [slots, H, P, N]


@dataclass(frozen=True)
class NarrowCache(MambaCache):
    """The same with states that are rounded in a way of their own: see kernels/ssm/narrow.py."""

    scales: Tensor | None  # [slots, H] of states of a byte a number
    stochastic: bool  # they are rounded by chance


LayerCache = AttentionCache | MambaCache
