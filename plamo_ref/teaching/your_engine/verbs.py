"""The verbs of the engine that a reader builds: one way to write them.

They stand in for what a reader has not written yet; the folded solutions of lesson 08b are these
functions, without their types.

Invariant: whatever its company, budget or memory, a request gets the ids that the reference gives
it alone; when nobody runs, every block and slot is free.
Used by lesson 08b.
"""

import math

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, MambaCache
from plamo_ref.reference.attention import Attention
from plamo_ref.reference.functions import visible
from plamo_ref.reference.mamba import Mamba, MambaState
from plamo_ref.reference.model import Plamo2Reference
from plamo_ref.sampling import uniform
from plamo_ref.teaching.your_engine.nouns import (
    Batch,
    Engine,
    Memory,
    Request,
    Table,
    attend,
    first_needed,
    layers_of,
    logits_of,
    project,
)


def reserve(memory: Memory, r: Request, new: int) -> None:
    if not r.slot:
        (r.slot,) = memory.slots.take(1)
    for window, pool in memory.pools.items():
        table = r.tables[window]
        first = first_needed(r.computed, window, memory.block_size)
        pool.give_back(table.blocks[: first - table.first])
        table.blocks = table.blocks[first - table.first :]
        table.first = first
        end = math.ceil((r.computed + new) / memory.block_size)
        table.blocks += pool.take(end - first - len(table.blocks))


def release(memory: Memory, r: Request) -> None:
    for window, pool in memory.pools.items():
        pool.give_back(r.tables.pop(window, Table()).blocks)
    if r.slot:
        memory.slots.give_back([r.slot])
    r.slot = r.computed = 0


def fits(memory: Memory, r: Request, new: int) -> bool:
    if not r.slot and not memory.slots.num_free:
        return False
    for window, pool in memory.pools.items():
        table = r.tables[window]
        leaving = first_needed(r.computed, window, memory.block_size) - table.first
        end = math.ceil((r.computed + new) / memory.block_size)
        if end - table.first - len(table.blocks) > pool.num_free + leaving:
            return False
    return True


def schedule(engine: Engine) -> dict[Request, int]:
    memory, waiting, running = engine.memory, engine.waiting, engine.running
    share: dict[Request, int] = {}
    budget, short = engine.budget, False
    for r in list(running):
        new = min(r.left, budget)
        while new and r in running and not fits(memory, r, new):
            newest, short = running.pop(), True
            release(memory, newest)
            waiting.appendleft(newest)
        if new and r in running:
            reserve(memory, r, new)
            share[r] = new
            budget -= new
    while budget and waiting and len(running) < engine.seats and not short:
        r = waiting[0]
        new = min(r.left, budget)
        if not fits(memory, r, new):
            break
        running.append(waiting.popleft())
        reserve(memory, r, new)
        share[r] = new
        budget -= new
    return share


def flat_batch(share: dict[Request, int]) -> Batch:
    ids: list[int] = []
    positions: list[int] = []
    starts = [0]
    for r, new in share.items():
        ids += r.ids[r.computed : r.computed + new]
        positions += range(r.computed, r.computed + new)
        starts.append(len(ids))
    return Batch(list(share), torch.tensor(ids), torch.tensor(positions), torch.tensor(starts))


def attention(mixer: Attention, x: Tensor, batch: Batch, cache: AttentionCache) -> Tensor:
    q, k, v = project(mixer, x, batch.positions)
    size, mixed = cache.keys.shape[1], torch.empty_like(q)
    for r, rows in batch.parts():
        table = r.tables[mixer.window]
        blocks, start = torch.tensor(table.blocks), table.first * size
        at = batch.positions[rows] - start
        slots = blocks[at // size] * size + at % size
        cache.keys.flatten(0, 1)[slots] = k[rows]
        cache.values.flatten(0, 1)[slots] = v[rows]
        keys, values = cache.keys[blocks].flatten(0, 1), cache.values[blocks].flatten(0, 1)
        seen = visible(batch.positions[rows], start + torch.arange(len(keys)), mixer.window)
        values = values.masked_fill(~seen.any(0)[:, None, None], 0)
        mixed[rows] = attend(q[rows], keys, values, seen)
    return mixer.o_proj(mixed.flatten(1))


def mamba(mixer: Mamba, x: Tensor, batch: Batch, cache: MambaCache) -> Tensor:
    out = torch.empty_like(x)
    for r, rows in batch.parts():
        state = MambaState(cache.conv[r.slot], cache.ssm[r.slot]) if r.computed else None
        out[rows], state = mixer(x[rows], state)
        cache.conv[r.slot], cache.ssm[r.slot] = state.conv, state.ssm
    return out


def forward(model: Plamo2Reference, memory: Memory, batch: Batch) -> Tensor:
    x = model.model.embed_tokens(batch.token_ids)
    for layer, cache in layers_of(model, memory):
        normed = layer.pre_mixer_norm(x)
        if isinstance(cache, MambaCache):
            mixed = mamba(layer.mixer, normed, batch, cache)
        else:
            mixed = attention(layer.mixer, normed, batch, cache)
        x = x + layer.post_mixer_norm(mixed)
        x = x + layer.post_mlp_norm(layer.mlp(layer.pre_mlp_norm(x)))
    return logits_of(model, x[batch.starts[1:] - 1])


def sample(row: Tensor, r: Request) -> int:
    if r.temperature == 0:
        return int(row.argmax())
    u = uniform(r.seed, len(r.made))
    sums = (row / r.temperature).softmax(-1).cumsum(-1)
    return int((sums <= u).sum())


def step(engine: Engine) -> dict[Request, int]:
    share = schedule(engine)
    logits = forward(engine.model, engine.memory, flat_batch(share))
    for (r, new), row in zip(share.items(), logits, strict=True):
        r.computed += new
        if r.left == 0:
            r.ids.append(sample(row, r))
        if r.is_done:
            engine.running.remove(r)
            release(engine.memory, r)
    return share
