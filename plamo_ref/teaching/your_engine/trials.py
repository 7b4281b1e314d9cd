"""Trials of a reader's verbs: what they do on inputs that nobody has seen, told as plain data.

Invariant: a story is a list of numbers and words, the same for the same behaviour; an exception is
its last word. So two verbs that act alike tell one story, and a known mistake can be recognised.
Used by lesson 08b.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import MambaCache
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.reference.model import Plamo2Reference
from plamo_ref.teaching.your_engine import verbs
from plamo_ref.teaching.your_engine.nouns import Batch, Engine, Memory, Request, Table

Verb = Callable[..., Any]
Story = list[Any]


def told(steps: Callable[[], Iterator[Any]]) -> Story:
    """What a generator yields; an exception of the reader's code is the last word."""
    story: Story = []
    try:
        for item in steps():
            story.append(item)
    except NotImplementedError:
        raise
    except Exception as error:
        story.append(f"{type(error).__name__}: {error}")
    return story


def small_memory(blocks: int = 12, slots: int = 3) -> Memory:
    """Without tensors: blocks of 2; one group sees everything, one 4 tokens back, in less room."""
    pools: dict[int | None, Pool] = {None: Pool("block", blocks + 1), 4: Pool("block", blocks - 2)}
    return Memory(2, pools, Pool("slot", slots + 1), [])


def holds(memory: Memory, r: Request) -> Any:
    """What a request has, and what is free."""
    tables = [(t.first, tuple(t.blocks)) for t in (r.tables.get(w, Table()) for w in memory.pools)]
    free = [pool.num_free for pool in (*memory.pools.values(), memory.slots)]
    return (r.slot, r.computed, *tables, *free)


def memory_story(reserve: Verb, release: Verb, seed: int = 81) -> Story:
    """Three requests grow by random pieces, and end at random."""

    def steps() -> Iterator[Any]:
        draw, memory = random.Random(seed), small_memory()
        requests = [Request(name, [0] * 40) for name in "ABC"]
        for _ in range(60):
            r = draw.choice(requests)
            new = draw.randint(1, 5)
            if r.computed and (draw.random() < 0.2 or not verbs.fits(memory, r, new)):
                release(memory, r)
            elif verbs.fits(memory, r, new):
                reserve(memory, r, new)
                r.computed += new
            yield r.name, holds(memory, r)

    return told(steps)


def fits_story(fits: Verb, seed: int = 82) -> Story:
    """Asked before each piece; answers only, unless something was taken."""

    def steps() -> Iterator[Any]:
        draw, memory = random.Random(seed), small_memory(16, slots=2)
        memory.pools[4] = Pool("block", 9)
        requests = [Request(name, [0] * 60) for name in "ABC"]
        for _ in range(160):
            r, new = draw.choice(requests), draw.randint(1, 8)
            before = holds(memory, r)
            yield bool(fits(memory, r, new))
            if holds(memory, r) != before:
                yield "something was taken"
                return
            if verbs.fits(memory, r, new):
                verbs.reserve(memory, r, new)
                r.computed += new
            elif r.slot and draw.random() < 0.4:
                verbs.release(memory, r)

    return told(steps)


def _given(share: Any) -> Any:
    if not isinstance(share, dict):
        raise TypeError(f"return the share, {{request: tokens}}; this is {share!r}")
    return share


def schedule_story(schedule: Verb, seed: int, blocks: int = 9) -> Story:
    """Who gets how many tokens in each step, and who waits; tokens are pretended."""

    def steps() -> Iterator[Any]:
        draw, memory = random.Random(seed), small_memory(blocks, slots=3)
        engine = Engine(None, memory, seats=2 + seed % 2, budget=5)  # type: ignore[arg-type]
        for name in "ABCDEF":
            length, most = draw.randint(1, 9), draw.randint(1, 8)
            engine.waiting.append(Request(name, [0] * length, most))
        for _ in range(120):
            if not (engine.waiting or engine.running):
                return
            share = _given(schedule(engine))
            yield [(r.name, new) for r, new in share.items()], [r.name for r in engine.waiting]
            for r, new in share.items():
                r.computed += new
                if r.left == 0:
                    r.ids.append(0)
                if r.is_done:
                    engine.running.remove(r)
                    verbs.release(memory, r)
        yield "after 120 steps somebody still waits"

    return told(steps)


def batch_story(flat_batch: Verb, seed: int = 86) -> Story:
    """Ids, positions and starts of a decode, a piece of a prompt and a whole prompt."""

    def steps() -> Iterator[Any]:
        draw = random.Random(seed)
        for _ in range(3):
            share = {}
            for name in "ABC":
                r = Request(name, [draw.randint(10, 99) for _ in range(draw.randint(3, 9))])
                r.computed = draw.randint(0, len(r.ids) - 1)
                share[r] = draw.randint(1, r.left)
            batch = flat_batch(share)
            yield [r.name for r in batch.requests]
            for numbers in (batch.token_ids, batch.positions, batch.starts):
                yield numbers.tolist(), str(numbers.dtype)

    return told(steps)


def _walk(draw: random.Random) -> Iterator[dict[str, int]]:
    """Pieces of prompts beside single tokens; -1: that request ends here, and D takes its place."""
    yield {"A": draw.randint(66, 75), "B": draw.randint(20, 40), "C": 1}
    yield {"A": 3, "B": draw.randint(2, 9), "C": 1}
    yield {"A": 1, "B": 1, "C": 2}
    yield {"A": -1, "D": draw.randint(20, 40), "B": 1, "C": 1}
    yield {"B": 1, "D": 1, "C": 1}


def _batches(memory: Memory, seed: int) -> Iterator[Batch]:
    """The walk's steps, with room for each; behind each the tokens count as computed."""
    draw = random.Random(seed)
    requests = {name: Request(name, [draw.randint(10, 5000) for _ in range(99)]) for name in "ABCD"}
    for pieces in _walk(draw):
        for name in [name for name, new in pieces.items() if new < 0]:
            verbs.release(memory, requests[name])
            del pieces[name]
        share = {requests[name]: new for name, new in pieces.items()}
        for r, new in share.items():
            verbs.reserve(memory, r, new)
        yield verbs.flat_batch(share)
        for r, new in share.items():
            r.computed += new


def layer_story(verb: Verb, model: Plamo2Reference, layer: int, seed: int) -> Story:
    """What a mixer says, step by step, to random rows (a word where it says NaN), and which
    blocks or slots hold something behind that."""

    def steps() -> Iterator[Any]:
        memory, draw = Memory.of(model, blocks=60, slots=3), torch.Generator().manual_seed(seed)
        mixer, cache = list(model.model.blocks())[layer].mixer, memory.layers[layer]
        kept = cache.ssm if isinstance(cache, MambaCache) else cache.keys
        for batch in _batches(memory, seed):
            shape = (len(batch.token_ids), model.config.hidden_size)
            x = torch.randn(shape, generator=draw, dtype=torch.float64)
            said = _no_nan(verb(mixer, x, batch, cache))
            yield said, (~kept.flatten(1).isnan()).any(1).nonzero().flatten().tolist()

    return told(steps)


def forward_story(forward: Verb, model: Plamo2Reference, seed: int) -> Story:
    """Logits of the last token of each request, step by step."""

    def steps() -> Iterator[Any]:
        memory = Memory.of(model, blocks=60, slots=3)
        for batch in _batches(memory, seed):
            yield _no_nan(forward(model, memory, batch))

    return told(steps)


def _no_nan(x: Tensor) -> Tensor | str:
    return "NaN" if x.isnan().any() else x


def sample_story(sample: Verb, seed: int) -> Story:
    """Greedy, then cold and hot draws, of requests that have made some tokens."""

    def steps() -> Iterator[Any]:
        draw = torch.Generator().manual_seed(seed)
        for number in range(60):
            r = Request("A", [0] * (3 + number % 4), seed=seed + number % 5)
            r.ids += [0] * (number % 7)
            r.temperature = (0.0, 0.5, 1.0, 2.0)[number % 4]
            yield int(sample(torch.randn(24, generator=draw, dtype=torch.float64), r))

    return told(steps)


def engine_story(step: Verb, model: Plamo2Reference, seed: int) -> Story:
    """Shares and texts of three requests whose memory does not suffice for all at once."""

    def steps() -> Iterator[Any]:
        draw = random.Random(seed)
        engine = Engine(model, Memory.of(model, blocks=6, slots=3), seats=3, budget=7)
        requests = []
        for name, length in zip("ABC", (9, 5, 7), strict=True):
            ids = [draw.randint(10, 5000) for _ in range(length)]
            temperature = 0.8 if name == "B" else 0.0
            requests.append(Request(name, ids, draw.randint(3, 6), temperature, seed))
            engine.add(requests[-1])
        for _ in range(40):
            if not (engine.waiting or engine.running):
                break
            yield [(r.name, new) for r, new in _given(step(engine)).items()]
            yield [list(r.made) for r in requests]
            yield [pool.num_free for pool in (*engine.memory.pools.values(), engine.memory.slots)]
        else:
            yield "after 40 steps somebody still waits"

    return told(steps)
