"""How long a scheduling decision takes, without a model.

Invariant: it times the real scheduler on the real cache; only the tokens are made up.
"""

import time
from functools import partial
from statistics import median
from typing import Any

import torch

from plamo_ref.batch import ForwardBatch
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.batching import build_batch
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.engine.settled import count, settle
from plamo_ref.sampling import SamplingParams

UNLIMITED = 1 << 42  # bytes that are only counted, never allocated
PROMPT, STEPS = 100, 100


def time_decisions(running: int) -> dict[str, Any]:
    """CPU milliseconds of `schedule` and of `build_batch` with `running` decoding requests."""
    config = EngineConfig(
        max_num_seqs=running, max_num_batched_tokens=PROMPT * running, max_model_len=4096
    )
    memory = plan_memory(
        SHAPES["8b"], config, UNLIMITED, dtype=torch.bfloat16, state_dtype=torch.float32
    )
    cache = memory.new_cache()
    queues = Queues(config, cache, running)
    place = partial(ForwardBatch.empty, device=torch.device("cpu"))
    scheduler = V1Scheduler(queues)
    params = SamplingParams(max_tokens=STEPS + 1)
    for i in range(running):
        queues.add(Request(str(i), tuple(range(PROMPT)), params, (), 0, i))
    decide, build = [], []
    for step in range(STEPS):
        started = time.thread_time()
        schedule = scheduler.schedule()
        decided = time.thread_time()
        plan = build_batch(schedule, cache, place)
        built = time.thread_time()
        count(schedule.tokens)
        settle(plan.sampled, cache)
        for request in plan.sampled:
            request.num_unread_tokens -= 1
            request.append(0)
        if step:  # the first one is the prefill
            decide.append(decided - started)
            build.append(built - decided)
    return {
        "running": running,
        "schedule_ms": round(median(decide) * 1e3, 4),
        "build_batch_ms": round(median(build) * 1e3, 4),
    }
