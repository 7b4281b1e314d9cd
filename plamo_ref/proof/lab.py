"""Small models, small memories and random scenarios: what a laboratory for the engine needs.

Invariant: everything here is drawn from the numbers it is given and is the same every time; the
engine under observation is the real one, only its model is small.
"""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.holding import attention_groups
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model
from plamo_ref.reference import Plamo2Reference
from plamo_ref.sampling import GuidedError, GuidedParams, SamplingParams
from plamo_ref.weights.loading import build_model

Pick = Callable[[int, int], int]  # a whole number between two, both included


# --- models ---------------------------------------------------------------------------------------


def lab_config(**changes: object) -> Plamo2Config:
    """Four layers, one of each kind and a second Mamba; window 6; 64 tokens in the vocabulary."""
    base: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size_per_head": 8,
        "attention_window_size": 6,
        "full_attention_idx": (3,),
        "rope_theta": 1e6,
        "rope_local_theta": 1e4,
        "mamba_d_state": 8,
        "mamba_num_heads": 3,
        "intermediate_size": 40,
        "vocab_size": 64,
    }
    return Plamo2Config(**(base | changes))  # type: ignore[arg-type]


def random_tensors(
    config: Plamo2Config, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """A checkpoint of noise in which nothing is trivial: no gain is 1, no bias 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in config.tensor_shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1 and not name.endswith(("q_weight", "k_weight")):
            # A small embedding: else the model repeats its last token and nothing else matters.
            noise *= 0.3 if "embed_tokens" in name else 1.5 / math.sqrt(shape[-1])
        else:
            noise = float(name.endswith(_CENTRED_AT_ONE)) + 0.3 * noise
        tensors[name] = noise.to(dtype)
    return tensors


_CENTRED_AT_ONE = ("q_weight", "k_weight", "norm_weight", ".D")  # the others are stored around 0


@dataclass(frozen=True)
class Pair:
    """The served model and the slow truth, made of the same tensors."""

    served: Plamo2Model
    reference: Plamo2Reference

    @property
    def config(self) -> Plamo2Config:
        return self.served.config


def random_pair(
    config: Plamo2Config,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    ops: Kernels = TORCH,
) -> Pair:
    """Both models of one random checkpoint."""
    tensors = random_tensors(config, dtype, seed)
    reference = Plamo2Reference(config)
    reference.load_state_dict(tensors, assign=True)
    return Pair(build_model(config, tensors.__getitem__, ops), reference.requires_grad_(False))


# --- memory ---------------------------------------------------------------------------------------


def lab_plan(
    config: Plamo2Config,
    *,
    block_size: int,
    blocks: Mapping[LayerKind, int],
    slots: int,
    max_num_seqs: int,
) -> MemoryPlan:
    """A plan made by hand: so many usable blocks of each group and so many usable slots."""
    groups = attention_groups(config)
    num_blocks = {group.kind: blocks[group.kind] + 1 for group in groups}
    slot_bytes = config.state_bytes(8, 8)
    block_bytes = {g.kind: config.kv_bytes_per_token(g.kind, 8) * block_size for g in groups}
    return MemoryPlan(
        groups=groups,
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        num_slots=slots + 1 if slot_bytes else 0,
        slot_bytes=slot_bytes,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        budget=0,
    )


def least_blocks(config: Plamo2Config, block_size: int, longest: int) -> dict[LayerKind, int]:
    """The smallest pools in which one request can reach `longest` tokens."""
    whole = math.ceil(longest / block_size)
    window = math.ceil((config.attention_window_size + block_size) / block_size)
    return {"full": whole, "sliding_window": min(whole, window)}


# --- a grammar ------------------------------------------------------------------------------------


class LabGuide:
    """A grammar without a meaning, but with a memory: what may follow depends on all that came.

    Args:
        rule: a number; each is another grammar.
        length: of its texts.
    """

    error: str | None = None

    def __init__(self, rule: int, length: int, vocab_size: int) -> None:
        self._rule, self._length, self._vocab_size = rule, length, vocab_size
        self._accepted: list[int] = []

    def mask(self, stop_ids: Collection[int]) -> np.ndarray:
        drawn = random.Random(hash((self._rule, *self._accepted)))
        self._allowed = allowed = np.array([drawn.random() < 0.3 for _ in range(self._vocab_size)])
        allowed[list(stop_ids)] = False
        allowed[drawn.choice(sorted({*range(self._vocab_size)} - {*stop_ids}))] = True
        return allowed

    def accept(self, token: int) -> None:
        if not self._allowed[token]:
            raise GuidedError(f"token {token} does not fit after {self._accepted}")
        self._accepted.append(token)

    def restart(self, tokens: Sequence[int]) -> None:
        self._accepted = list(tokens)

    def wait(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass

    @property
    def finished(self) -> bool:
        return len(self._accepted) >= self._length

    @property
    def complete(self) -> bool:
        return self.finished


# --- scenarios ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScenarioRequest:
    """What one user does: comes before step `arrival` and may leave before step `abort`."""

    prompt: tuple[int, ...]
    params: SamplingParams
    arrival: int = 0
    abort: int | None = None
    grammar: tuple[int, int] | None = None  # rule and length of a `LabGuide`
    follows: int | None = None  # the number of the request whose text so far comes before `prompt`
    borders: tuple[int, ...] = ()  # see `EngineCore.add`

    def guide(self, vocab_size: int) -> LabGuide | None:
        """Its grammar, at the beginning."""
        return None if self.grammar is None else LabGuide(*self.grammar, vocab_size)


@dataclass(frozen=True)
class Interruption:
    """What comes in the middle of a step, at the `point`-th place where it can."""

    point: int
    error: type[BaseException] = KeyboardInterrupt


@dataclass(frozen=True)
class Scenario:
    """A day in the life of an engine. `preemptions`: step → how many of the newest are sent back
    to the queue before it, besides those for whom memory is short. `interruptions`: by step."""

    requests: tuple[ScenarioRequest, ...]
    engine: EngineConfig
    plan: MemoryPlan
    preemptions: Mapping[int, int]
    interruptions: Mapping[int, Interruption] = field(default_factory=dict)


def draw_scenario(pick: Pick, config: Plamo2Config) -> Scenario:
    """A scenario from whole numbers: from `random.Random(…).randint`, or from a testing tool."""
    scheduler = ("v1", "v0")[pick(0, 1)]
    budget = pick(2, 40) if scheduler == "v0" else pick(1, 40)
    chunk = (pick(0, budget) or None) if scheduler == "v0" else None
    seats, block_size = pick(1, 6), pick(1, 5)
    longest_prompt = budget - 1 if scheduler == "v0" and chunk is None else 30
    requests = tuple(_draw_request(pick, config, longest_prompt) for _ in range(pick(1, 6)))
    # Room for every prompt and at least one token more; sometimes a request is cut by that.
    longest = max(len(r.prompt) + 1 + pick(0, r.params.max_tokens or 0) for r in requests)
    least = least_blocks(config, block_size, longest)
    plan = lab_plan(
        config,
        block_size=block_size,
        blocks={kind: count + pick(0, (2, 8)[pick(0, 1)]) for kind, count in least.items()},
        slots=pick(1, seats),
        max_num_seqs=seats,
    )
    engine = EngineConfig(
        block_size=block_size,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        scheduler=scheduler,  # type: ignore[arg-type]
        chunk_size=chunk,
        dtype="float64",
        device="cpu",
        seed=pick(0, 3),
        overlap=bool(pick(0, 1)),
    )
    preemptions = {pick(0, 25): pick(1, 3) for _ in range(pick(0, 3))}
    interruptions = {pick(0, 16): _draw_interruption(pick) for _ in range(pick(0, 3))}
    replay = max(1, pick(-2, 6))
    engine, plan = replace(engine, state_replay=replay), replace(plan, replay=replay)
    return Scenario(requests, engine, plan, preemptions, interruptions)


def _draw_interruption(pick: Pick) -> Interruption:
    # A step of six requests passes about 1,500 points, one of a single request a third of that.
    most = (500, 1500)[pick(0, 1)]
    return Interruption(pick(0, most), (KeyboardInterrupt, MemoryError, RuntimeError)[pick(0, 2)])


def _draw_request(pick: Pick, config: Plamo2Config, longest_prompt: int) -> ScenarioRequest:
    length, ids = min(pick(1, 30), longest_prompt), random.Random(pick(0, 1 << 16))
    arrival, params = pick(0, 12), _draw_params(pick, config)
    grammar = (pick(0, 99), pick(1, 12)) if pick(0, 4) == 0 else None
    if grammar is not None:
        params = replace(params, guided=GuidedParams(json_object=True))  # in name only
    return ScenarioRequest(
        prompt=tuple(ids.randrange(config.vocab_size) for _ in range(length)),
        params=params,
        arrival=arrival,
        abort=arrival + pick(0, 12) if pick(0, 5) == 0 else None,
        grammar=grammar,
    )


def _draw_params(pick: Pick, config: Plamo2Config) -> SamplingParams:
    drawn: dict[str, Any] = {
        "max_tokens": pick(1, 12),
        "stop_token_ids": [pick(0, config.vocab_size - 1) for _ in range(pick(0, 2))],
        "temperature": (0, 0.5, 1.0, 3.0)[pick(0, 3)],
        "top_k": pick(0, 12),
        "top_p": pick(5, 10) / 10,
        "min_p": pick(0, 2) / 20,
        "seed": pick(0, 9) or None,
    }
    if pick(0, 2) == 0:
        # Each alone as often as not: one that is forgotten shows only where no other is asked for.
        adjustments = {
            "repetition_penalty": 1 + pick(0, 4),
            "presence_penalty": pick(-4, 4) / 2,
            "frequency_penalty": pick(-4, 4) / 2,
            "logit_bias": {pick(0, config.vocab_size - 1): float(pick(-3, 3))},
            "min_tokens": pick(0, drawn["max_tokens"]),
        }
        alone = dict(enumerate(adjustments.items())).get(pick(0, 2 * len(adjustments) - 1))
        drawn |= adjustments if alone is None else dict([alone])
    scores = {"logprobs": pick(0, 3), "prompt_logprobs": pick(0, 3)} if pick(0, 3) == 0 else {}
    return SamplingParams(**drawn | scores)
