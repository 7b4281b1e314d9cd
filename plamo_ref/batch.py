"""What the model is told about one step: a frozen bundle of tensors on its device.

Invariant: a batch describes a step completely; together with the caches it decides every result.
Requests with one new token and a past (decodes) come first, the others (prefills) after them, so
that each kind is one contiguous slice of every tensor.
Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.config import LayerKind


@dataclass(frozen=True)
class GroupBatch:
    """Where the keys and values of one attention group are."""

    block_table: Tensor  # [R, M] physical blocks; unused entries are the null block
    first_block: Tensor  # [R] logical number of each row's first entry
    slot_mapping: Tensor  # [T] row (block · block_size + offset) of each new token


@dataclass(frozen=True)
class ForwardBatch:
    """One step: T tokens of R requests."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    query_start_loc: Tensor  # [R + 1] where each request's tokens start
    seq_lens: Tensor  # [R] tokens of each request after the step
    has_past: Tensor  # [R] bool: was anything computed before the step
    state_slots: Tensor  # [R]
    groups: Mapping[LayerKind, GroupBatch]
    logits_rows: Tensor  # rows of T whose logits are wanted
    num_decodes: int  # requests (and tokens) at the front that decode
    num_requests: int
    # The usual decode step: one token a request, and the logits of all of them, in this order.
    rows_in_order: bool = False

    @property
    def decodes(self) -> slice:
        """Of requests and, since each has one token, of tokens."""
        return slice(0, self.num_decodes)

    @property
    def prefills(self) -> slice:
        """Of requests."""
        return slice(self.num_decodes, self.num_requests)

    @property
    def prefill_start_loc(self) -> Tensor:
        """[number of prefills + 1], counted from the first prefill token."""
        return self.query_start_loc[self.num_decodes :] - self.num_decodes

    @property
    def has_prefills(self) -> bool:
        return self.num_requests > self.num_decodes


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


LayerCache = AttentionCache | MambaCache


def join(decoded: Tensor | None, prefilled: Tensor | None) -> Tensor:
    """The results of both kinds, in the order of the batch."""
    parts = [part for part in (decoded, prefilled) if part is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
