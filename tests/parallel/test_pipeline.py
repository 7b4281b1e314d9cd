"""What a pipeline does while it computes: the host lays out the next step; stages have work.

Invariant tested: with overlap no round waits for the host to read the tokens of the one before it;
with enough requests, two stages need half of one engine's time, counted in rounds; a round's steps
have even shares. That the texts are right, test_parallel.py shows: half of its engines overlap.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from engines import CONFIGS

from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.parallel.pipeline import LEAST_TOKENS
from plamo_ref.proof.lab import lab_plan, least_blocks, random_pair, random_tensors
from plamo_ref.proof.ranks import LabRunner, threaded_runner
from plamo_ref.sampling import SamplingParams

CONFIG = replace(CONFIGS["mamba and sliding"], mamba_num_heads=4)
LONGEST = 2000
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@cache
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(CONFIG)


def engine(seats: int, **settings: object) -> EngineConfig:
    shape = {"block_size": 4, "max_num_seqs": seats, "dtype": "float64", "device": "cpu"}
    return EngineConfig(**shape, **settings)


def ample(seats: int) -> MemoryPlan:
    """Room for whatever may come."""
    blocks = dict.fromkeys(least_blocks(CONFIG, 4, LONGEST), 2 + seats * LONGEST // 4)
    return lab_plan(CONFIG, block_size=4, blocks=blocks, slots=seats, max_num_seqs=seats)


@contextmanager
def pipeline(seats: int, stages: int = 2, **settings: object) -> Iterator[EngineCore]:
    """An engine over ranks that are threads; its runner knows them."""
    plan = ample(seats)
    runner = threaded_runner(CONFIG, tensors(), plan, 1, stages)
    try:
        yield new_core(runner, plan, engine(seats, pipeline_parallel_size=stages, **settings))
    finally:
        runner.close()


def live(core: EngineCore) -> int:
    """To the end: calls of `step`."""
    calls = 0
    while core.has_work:
        core.step()
        calls += 1
    return calls


def rounds_of(runner: LabRunner) -> list[int]:
    """Counts what each rank has computed, the driver's last stage first."""
    counts = [0] * len(runner.ranks)

    def counted(number, run):
        def one(batch, rows):
            counts[number] += 1
            return run(batch, rows)

        return one

    for number, rank in enumerate(runner.ranks):
        rank.run = counted(number, rank.run)
    return counts


@pytest.mark.parametrize("stages", [2, 3])
def test_a_step_is_laid_out_while_the_ranks_compute_the_one_before_it(stages):
    """The last stage comes to no end before the core has laid out what comes in next."""
    with pipeline(8, stages, overlap=True) as core:
        runner, changed, waited = core.runner, threading.Condition(), []
        place, run, laid_out = runner.place, runner.ranks[0].run, []

        def placed(room):
            with changed:
                laid_out.append(room)
                changed.notify()
            return place(room)

        def patient(batch, rows):
            if all(waited) and len(waited) < 12:  # at the end there is nothing left to lay out
                so_many = len(waited) + stages
                with changed:
                    waited.append(changed.wait_for(lambda: len(laid_out) > so_many, timeout=20))
            return run(batch, rows)

        runner.place, runner.ranks[0].run = placed, patient
        for _ in range(stages):
            core.add([1, 2, 3], replace(GREEDY, max_tokens=15))
            core.step()  # each prompt in a step of its own
        requests = list(core.requests.values())
        live(core)
    assert waited == [True] * 12
    assert [len(request.output_ids) for request in requests] == [15] * stages


@pytest.mark.parametrize("overlap", [False, True])
def test_every_stage_has_work_and_no_request_is_in_two_steps(overlap):
    """Eight decodes on two stages, four and four. Overlapped, a step lands in the call after the
    round that brings it to its end."""
    sizes = []
    with pipeline(8, overlap=overlap, max_num_batched_tokens=24) as core:
        core.observers.append(lambda record, *_: sizes.append(record.num_tokens))
        requests = [core.add([1 + n, 2, 3], GREEDY) for n in range(8)]
        calls = 0
        while core.has_work:
            core.step()
            calls += 1
            new, old = core._under_way
            assert not {*(new.plan.requests if new else ())} & {*(old.plan.requests if old else ())}
    assert sizes == [24, *[4] * 10]
    assert calls == 13 + overlap
    assert [len(r.output_ids) for r in requests] == [6] * 8


def test_two_stages_have_nearly_twice_the_throughput_where_there_is_enough_work():
    """Each stage takes as long for a step, whatever is in it. One engine has seats for four, and
    takes two such times a step; two have memory for eight, and take one a round."""
    prompts, params = [[1 + n, 2, 3] for n in range(16)], replace(GREEDY, max_tokens=20)
    runner = ModelRunner(random_pair(CONFIG).served, ample(4), torch.float64)
    one = new_core(runner, ample(4), engine(4))
    alone = [one.add(prompt, params) for prompt in prompts]
    live(one)
    with pipeline(8, overlap=True) as core:
        counts = rounds_of(core.runner)
        rounds = []
        start = core.runner.start_round
        core.runner.start_round = lambda *step: rounds.append(step) or start(*step)
        shared = [core.add(prompt, params) for prompt in prompts]
        live(core)
    assert [r.output_ids for r in shared] == [r.output_ids for r in alone]
    assert one.num_steps * 2 / len(rounds) >= 1.85
    assert min(counts) / len(rounds) >= 0.95  # a stage has something to do


def test_a_step_has_its_share_of_the_tokens_that_there_are():
    """Two prompts that one step could take are a step each; what is too short is not cut."""
    long, short = LEAST_TOKENS + 100, LEAST_TOKENS - 100
    sizes = []
    with pipeline(4, overlap=True, max_num_batched_tokens=4096) as core:
        core.observers.append(lambda record, *_: sizes.append(record.num_tokens))
        for n in range(2):
            core.add([1 + n] * long, replace(GREEDY, max_tokens=1))
        live(core)
        assert sizes == [long, long]
        core.add([5] * short, replace(GREEDY, max_tokens=1))
        live(core)
    assert sizes[2:] == [short]
