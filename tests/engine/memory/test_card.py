"""Seats and tokens of a step from the memory of a card.

Invariant tested: more memory never gives fewer of either, what is set stays, the longest request
fits as before, and the plan says why.
"""

import pytest
import torch

from plamo_ref import LLM
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine import build
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory import card
from plamo_ref.engine.memory.card import fit_to_memory
from plamo_ref.engine.memory.device_bytes import plan_device
from plamo_ref.parallel import driver

BF16, GIB = torch.bfloat16, 1 << 30


def fitted(shape: str, gib: float, state: str = "float32", **engine: object):
    config = EngineConfig(state_dtype=state, **engine)  # type: ignore[arg-type]
    return fit_to_memory(config, SHAPES[shape], int(gib * GIB), BF16)


def sizes(*asked: object, **engine: object) -> tuple[int | None, int | None]:
    config, _ = fitted(*asked, **engine)  # type: ignore[arg-type]
    return config.max_num_seqs, config.max_num_batched_tokens


def test_large_cards_have_more_seats_and_larger_steps():
    assert sizes("8b", 80) == (256, 8192)
    assert sizes("8b", 141) == (256, 8192)
    assert sizes("1b", 24) == (256, 4096)
    assert sizes("8b", 24) == (64, 2048)


def test_what_is_set_stays_and_is_what_the_other_is_fitted_to():
    assert sizes("8b", 80, max_num_seqs=7) == (7, 8192)
    assert sizes("8b", 80, max_num_batched_tokens=300) == (256, 300)
    assert sizes("8b", 80, memory_bytes=2 * GIB) == (64, 2048)
    config, why = fitted("8b", 80, max_num_seqs=7, max_num_batched_tokens=300)
    assert ((config.seats, config.step_tokens), why) == ((7, 300), ())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", ["float32", "bfloat16", "fp8"])
def test_more_memory_gives_no_less_of_anything(shape, state):
    last = (0, 0, 0)
    for gib in range(22, 150, 2):
        config, _ = fitted(shape, gib, state)
        plan = plan_device(SHAPES[shape], config, gib * GIB, BF16)
        now = (config.seats, config.step_tokens, plan.max_num_seqs)
        assert all(new >= old for new, old in zip(now, last, strict=True)), gib
        last = now
    assert last == (256, 8192, 256)


def test_the_reason_names_what_was_chosen():
    ((said,), (other,)) = (fitted("8b", 80, **one)[1] for one in ({}, {"max_num_seqs": 3}))
    assert "max_num_seqs = 256 and max_num_batched_tokens = 8,192 for a memory of 85," in said
    assert other.startswith("max_num_batched_tokens = 8,192 for")


def test_an_engine_on_a_gpu_is_fitted_and_its_plan_says_so(monkeypatch):
    """Up to the weights, for which there is no GPU here; two of them share a model."""
    seen = []

    def built(model, engine, load, *_):
        seen.append((engine.max_num_seqs, engine.max_num_batched_tokens))
        return "runner", plan_device(SHAPES["8b"], EngineConfig(), 80 * GIB, BF16)

    monkeypatch.setattr(EngineConfig, "resolve_device", lambda self: torch.device("cuda"))
    monkeypatch.setattr(card, "card_memory", lambda device: 40 * GIB)
    monkeypatch.setattr(build, "build_runner", built)
    monkeypatch.setattr(driver, "build_driver", built)
    monkeypatch.setattr(build, "new_core", lambda runner, plan, engine: engine)
    for ranks in (1, 2):
        engine, plan = build.build_core(
            SHAPES["8b"], EngineConfig(tensor_parallel_size=ranks), lambda *_: None
        )
        assert seen[-1] == (engine.max_num_seqs, engine.max_num_batched_tokens)
        assert "for a memory of" in plan.reasons[-1]
    assert seen == [(64, 2048), (256, 8192)]


def test_on_a_cpu_the_least_of_both_is_taken():
    with LLM("tiny", memory_bytes=64 << 20, device="cpu") as llm:
        assert llm.core.config.step_tokens == 2048
        assert llm.core.queues.max_num_seqs == 64
