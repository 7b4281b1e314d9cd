"""From a row of logits to a token id: what the user asks for, and the one function that does it.

Invariant: the token drawn for a request depends on its logits, its parameters, its seed and how
many tokens it has, and on nothing else in the batch: randomness is a counter, not a stream.
Built in notebooks/04_reference_generation.ipynb.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.errors import PlamoRefError

GREEDY_TEMPERATURE = 1e-5  # below it the distribution is an argmax for every float32 logit


class SamplingError(PlamoRefError, ValueError):
    """A sampling parameter with an impossible value."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. Names and defaults follow vLLM's offline API."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # keep the k most likely tokens; 0 or -1: all
    top_p: float = 1.0  # keep the fewest most likely tokens whose probabilities reach p
    min_p: float = 0.0  # drop tokens below min_p times the probability of the likeliest
    seed: int | None = None  # None: derived from the engine's seed and the request
    max_tokens: int = 16
    stop: Sequence[str] = ()  # a plain string means a list of one
    stop_token_ids: Sequence[int] = ()  # besides the checkpoint's own
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True  # in the text; the ids are always complete

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, ok, wanted in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= -1, "-1, 0 (both: all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("stop", all(isinstance(s, str) and s for s in stop), "strings, none of them empty"),
        ):
            if not ok:
                raise SamplingError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for token number `index` of a request: splitmix64 used as a counter.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    mask = (1 << 64) - 1
    # Seed and index are mixed one after the other, so that neighbouring seeds do not share numbers.
    return _mix((_mix(seed & mask) + index + 1) & mask) / 2**64


def _mix(x: int) -> int:
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & ~0x7FF  # 53 bits: a float64 holds it exactly, below 1


def sample(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """One token id for each row.

    Args:
        logits: [B, V] in any floating dtype.
        params: B parameters, one for each row.
        uniforms: B numbers in [0, 1); ignored by greedy rows.

    Returns:
        [B] int64 on the logits' device.
    """
    chosen = logits.argmax(-1)
    random = [i for i, p in enumerate(params) if not p.greedy]
    if random:
        rows = torch.tensor(random, device=logits.device)
        drawn = _sample_random(
            logits[rows], [params[i] for i in random], [uniforms[i] for i in random]
        )
        chosen[rows] = drawn
    return chosen


def _sample_random(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> Tensor:
    """Temperature, min-p, top-k, top-p, then the inverse of the cumulated probabilities."""
    columns = [
        [p.temperature, p.min_p, p.top_k if p.top_k > 0 else logits.shape[-1], p.top_p, u]
        for p, u in zip(params, uniforms, strict=True)
    ]
    table = torch.tensor(columns, dtype=torch.float64, device=logits.device)
    temperature, min_p, top_k, top_p, u = (c[:, None] for c in table.unbind(-1))  # [B, 1] each

    probs = torch.softmax(logits.to(torch.float64) / temperature, dim=-1)
    # Stable: equal probabilities keep the order of their ids, on every device.
    probs, ids = probs.sort(dim=-1, descending=True, stable=True)  # [B, V]
    rank = torch.arange(probs.shape[-1], device=probs.device)
    kept = (probs >= min_p * probs[:, :1]) & (rank < top_k)
    probs = probs * kept
    probs = probs / probs.sum(-1, keepdim=True)
    before = probs.cumsum(-1) - probs
    probs = probs * (before < top_p)

    cumulated = probs.cumsum(-1)
    reached = cumulated > u * cumulated[:, -1:]
    return ids.gather(-1, reached.int().argmax(-1, keepdim=True))[:, 0]
