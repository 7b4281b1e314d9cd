"""Mistakes that people make when they write the verbs, each as a change of ours that makes it.

Invariant: every slip changes what its verb does in the exercise's trial, and no two slips of an
exercise lead to the same story: so a sentence is only said to those who made that mistake.
Used by lesson 08b.
"""

from collections.abc import Callable
from typing import Any

from plamo_ref.teaching import mutants
from plamo_ref.teaching.your_engine import verbs

Verb = Callable[..., Any]

_ADMITTING = (
    "    while budget and waiting and len(running) < engine.seats and not short:\n"
    "        r = waiting[0]\n"
    "        new = min(r.left, budget)\n"
    "        if not fits(memory, r, new):\n"
    "            break\n"
    "        running.append(waiting.popleft())\n"
)

# Exercise → what is said → (verb, words of ours, what the mistaken one has in their place).
SLIPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "memory": {
        "`first` moves along with the blocks that leave": (
            "reserve", "        table.first = first\n", ""),
        "blocks are for the tokens that are there *and* the new ones": (
            "reserve", "(r.computed + new)", "new"),
        "only a request without a slot takes one": ("reserve", "if not r.slot", "if True"),
        "what has left the window goes back to its pool": (
            "reserve", "        pool.give_back(table.blocks[: first - table.first])\n", ""),
        "a block that is partly filled is a block: round up": (
            "reserve", "math.ceil((r.computed + new) / memory.block_size)",
            "(r.computed + new) // memory.block_size"),
        "after a release nothing is computed": ("release", "= r.computed = 0", "= 0"),
        "a table that is given back begins at block 0 again": (
            "release", ".pop(window, Table())", "[window]"),
        "what leaves is what the first *new* token does not see: the one at `r.computed`": (
            "reserve", "first_needed(r.computed, window", "first_needed(r.computed + new, window"),
        "who has released has no slot, so `r.slot` is 0": (
            "release", "r.slot = r.computed = 0", "r.computed = 0"),
        "the slot goes back to its pool": ("release", "give_back([r.slot])", "num_free"),
    },
    "fits": {
        "blocks that `reserve` gives back first count as free": ("fits", " + leaving:", ":"),
        "without a free slot a newcomer cannot begin": (
            "fits", "not memory.slots.num_free", "False"),
        "exactly as many as are free is enough": ("fits", "> pool", ">= pool"),
        "the tokens that are there need their blocks too": ("fits", "(r.computed + new)", "new"),
        "every group must have room, not only the first": (
            "fits", "    return True", "        return True"),
        "blocks that the request has already need not be free": (
            "fits", " - len(table.blocks)", ""),
    },
    "schedule": {
        "nobody is admitted in a step that sent somebody back": ("schedule", " and not short", ""),
        "who was sent back waits at the front": (
            "schedule", "waiting.appendleft(", "waiting.append("),
        "the newest goes, not the oldest": ("schedule", "running.pop()", "running.pop(0)"),
        "who is sent back releases all memory": (
            "schedule", "            release(memory, newest)\n", ""),
        "newcomers need a free seat": ("schedule", "len(running) < engine.seats", "True"),
        "the budget shrinks with every share": (
            "schedule", "            share[r] = new\n            budget -= new\n",
            "            share[r] = new\n"),
        "`r` itself may be the newest, and then it goes": (
            "schedule", "r in running and not", "running[-1] is not r and not"),
        "the first that does not fit ends it: nobody overtakes": (
            "schedule", _ADMITTING,
            "    for r in list(waiting):\n"
            "        new = min(r.left, budget)\n"
            "        full = len(running) == engine.seats or short\n"
            "        if not new or full or not fits(memory, r, new):\n"
            "            continue\n"
            "        waiting.remove(r)\n"
            "        running.append(r)\n"),
    },
    "batch": {
        "positions go on where the request stands": (
            "flat_batch", "range(r.computed, r.computed + new)", "range(new)"),
        "the ids that are not computed yet": (
            "flat_batch", "r.ids[r.computed : r.computed + new]", "r.ids[:new]"),
        "starts count all tokens before": (
            "flat_batch", "starts.append(len(ids))", "starts.append(new)"),
        "starts begin with 0 and have one entry more than there are requests": (
            "flat_batch", "starts = [0]", "starts: list[int] = []"),
        "no more than the share: a prompt may be cut": (
            "flat_batch", "r.computed : r.computed + new]", "r.computed :]"),
        "a share begins at `r.computed`, it is not the end of the ids": (
            "flat_batch", "r.ids[r.computed : r.computed + new]", "r.ids[-new:]"),
        "a position is a place in the request's text, not in the batch": (
            "flat_batch", "range(r.computed, r.computed + new)",
            "range(len(positions), len(positions) + new)"),
        "positions are whole numbers": (
            "flat_batch", "torch.tensor(positions)", "torch.tensor(positions).float()"),
    },
    "attention": {
        "a value that no query sees may be NaN, and 0 · NaN is NaN: make it 0": (
            "attention", "values.masked_fill(~seen.any(0)[:, None, None], 0)", "values"),
        "the first row that is gathered is position first · size": (
            "attention", "start + torch.arange", "torch.arange"),
        "slots are counted from the table's first block": (
            "attention", "at = batch.positions[rows] - start", "at = batch.positions[rows]"),
        "a slot is physical block · size + offset": (
            "attention", "slots = blocks[at // size] * size + at % size", "slots = at"),
        "the window belongs into the mask": (
            "attention", "len(keys)), mixer.window)", "len(keys)), None)"),
        "each attention group has a table of its own: that of `mixer.window`": (
            "attention", "r.tables[mixer.window]", "r.tables[None]"),
        "the last projection, `o_proj`, is missing": ("attention", "mixer.o_proj(", "("),
    },
    "mamba": {
        "of whom nothing is computed begins with None, whatever lies in the slot": (
            "mamba", " if r.computed else None", ""),
        "who has a past goes on from it": (
            "mamba", "MambaState(cache.conv[r.slot], cache.ssm[r.slot]) if r.computed else None",
            "None"),
        "the convolution's last inputs are kept as well": (
            "mamba", "cache.conv[r.slot], cache.ssm[r.slot] = state.conv, state.ssm",
            "cache.ssm[r.slot] = state.ssm"),
        "each request has its own slot": ("mamba", "r.slot", "1"),
        "its slot is `r.slot`, wherever it stands in the batch": (
            "mamba", "r.slot", "(batch.requests.index(r) + 1)"),
    },
    "model": {
        "the last row of each request, not the first": (
            "forward", "batch.starts[1:] - 1", "batch.starts[:-1]"),
        "a mixer adds to the stream, it does not replace it": (
            "forward", "x = x + layer.post_mixer_norm(mixed)", "x = layer.post_mixer_norm(mixed)"),
        "the mixer reads what pre_mixer_norm gives": (
            "forward", "normed = layer.pre_mixer_norm(x)", "normed = x"),
        "count the tokens that were made, without the prompt": (
            "sample", "len(r.made)", "len(r.ids)"),
        "logits are divided by the temperature": ("sample", "row / r", "row * r"),
        "every token has a number of its own": ("sample", "r.seed, len(r.made)", "r.seed, 0"),
        "the first draw has number 0: so many were made *so far*": (
            "sample", "len(r.made))", "len(r.made) + 1)"),
        "temperature divides the logits, not the probabilities": (
            "sample", "(row / r.temperature).softmax(-1)", "(row.softmax(-1) / r.temperature)"),
    },
    "step": {
        "only who has nothing left receives a token": ("step", "if r.left == 0:", "if True:"),
        "who is done gives all memory back": (
            "step", "            release(engine.memory, r)\n", ""),
        "who is done leaves `running`": ("step", "            engine.running.remove(r)\n", ""),
        "what was run is computed": ("step", "        r.computed += new\n", ""),
        "a token that was just made is not computed yet": (
            "step", "r.ids.append(sample(row, r))",
            "r.ids.append(sample(row, r)); r.computed += 1"),
        "first count what was computed, then ask what is left": (
            "step", "        r.computed += new\n        if r.left == 0:\n            r.ids.append("
            "sample(row, r))\n", "        if r.left == 0:\n            r.ids.append(sample(row, "
            "r))\n        r.computed += new\n"),
        "`sample` draws; not every request is greedy": (
            "step", "sample(row, r)", "int(row.argmax())"),
    },
}  # fmt: skip


def ours(exercise: str) -> dict[str, Verb]:
    """Our verbs of an exercise."""
    names = dict.fromkeys(name for name, _, _ in SLIPS[exercise].values())
    return {name: getattr(verbs, name) for name in names}


def mutant(name: str, old: str, new: str) -> Verb:
    """One of our verbs with other words in one place."""
    return mutants.mutant(getattr(verbs, name), old, new)


def mistakes(exercise: str, story: Verb) -> dict[str, Callable[[], Any]]:
    """For `check_exercise`: what is said → the story that this slip leads to.

    Args:
        story: takes the exercise's verbs by name.
    """

    def slipped(name: str, old: str, new: str) -> Callable[[], Any]:
        return lambda: story(**(ours(exercise) | {name: mutant(name, old, new)}))

    return {sentence: slipped(*slip) for sentence, slip in SLIPS[exercise].items()}
