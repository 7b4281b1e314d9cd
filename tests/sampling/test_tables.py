"""Tables on the device against `adjust`, which reads every context anew.

Invariant tested: whatever happened to a request before (tokens that the host has not read, steps
that were undone, seats of others), what the tables give is what its context alone gives, to the
last bit; a step reads no token a second time; memory goes with the last request.
"""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import CONFIGS, new_core
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adjust import CONTEXTS, TOKENS, V

from plamo_ref.engine.endings import needs_host
from plamo_ref.engine.fast.adjust_tables import AdjustTables, penalise_all, penalise_occurring
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.sampling import SamplingParams
from plamo_ref.sampling.adjust import RowContext, adjust, unpacked


@dataclass(eq=False)
class Life:
    """A request: `tokens` is its output, the host knows all but the last `unread` (0 or 1)."""

    context: RowContext
    tokens: list[int] = field(default_factory=list)
    unread: int = 0

    def whole(self) -> RowContext:
        return replace(self.context, output_ids=list(self.tokens))

    def known(self) -> RowContext:
        read = self.tokens[: len(self.tokens) - self.unread]
        return replace(self.context, output_ids=read, num_outputs=len(self.tokens))


def check(tables: AdjustTables, lives: list[Life], dtype: torch.dtype, seed: int) -> None:
    logits = torch.randn(len(lives), V, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before = logits.clone()
    late = [life for life in lives if life.unread]
    unread = SimpleNamespace(
        tokens=torch.tensor([V - 1, *(life.tokens[-1] for life in late)]),
        requests=[None, *late],
    )
    got = tables.adjust(logits, lives, [life.known() for life in lives], unread)
    expected = adjust(logits, [life.whole() for life in lives])
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    assert torch.equal(logits, before)


EVENTS = st.one_of(
    st.tuples(st.just("read"), TOKENS),  # the host knows everything, one token more
    st.tuples(st.just("unread"), TOKENS),  # the step before is read, this one is not
    st.tuples(st.just("undone"), st.integers(0, 3)),  # so many tokens are lost, whoever knew them
    st.tuples(st.just("ended"), CONTEXTS),  # another request takes the place
    st.tuples(st.just("idle"), st.none()),  # computed nothing in this step
)


@settings(max_examples=60)
@given(
    st.lists(CONTEXTS, min_size=1, max_size=6),
    st.lists(st.lists(EVENTS, min_size=6, max_size=6), max_size=8),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_tables_give_what_the_context_alone_gives(contexts, steps, dtype):
    tables = AdjustTables()
    lives = [Life(context, list(context.output_ids)) for context in contexts]
    for seed, events in enumerate(steps):
        active = []
        for place, ((event, value), life) in enumerate(zip(events, lives, strict=False)):
            if event == "ended":
                tables.release(life)
                life = lives[place] = Life(value, list(value.output_ids))
            elif event == "undone":
                life.tokens, life.unread = life.tokens[: max(0, len(life.tokens) - value)], 0
            elif event != "idle":
                life.tokens.append(value)
                life.unread = int(event == "unread")
            if event != "idle":
                active.append(life)
        if active:
            check(tables, active, dtype, seed)
    for life in lives:
        tables.release(life)
    assert tables.num_seats == 0


def test_a_token_that_was_lost_and_chosen_anew_is_counted_once():
    tables, params = AdjustTables(), SamplingParams(frequency_penalty=0.5, repetition_penalty=1.3)
    life = Life(RowContext(params, [1, 2], [], ()), [3], unread=1)
    check(tables, [life], torch.float32, 0)
    life.tokens, life.unread = [], 0  # the step was undone
    check(tables, [life], torch.float32, 1)
    life.tokens = [4]
    check(tables, [life], torch.float32, 2)


@pytest.mark.parametrize("done", [True, False])
def test_an_interrupt_leaves_nothing_half_counted(monkeypatch, done):
    """Whether it comes just before the newest tokens are counted or just after."""
    tables, params = AdjustTables(), SamplingParams(presence_penalty=1.5, frequency_penalty=0.5)
    lives = [Life(RowContext(params, [1], [], ()), [2, 2]) for _ in range(2)]
    check(tables, lives, torch.float64, 0)
    for life in lives:
        life.tokens.append(5)
        life.unread = 1
    healthy = torch.Tensor.index_add_

    def interrupted(*arguments: object) -> None:
        if done:
            healthy(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "index_add_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(tables, lives, torch.float64, 1)
    check(tables, lives, torch.float64, 1)


class Watched(tuple):
    """Counts the tokens that somebody has read."""

    reads = 0

    def __iter__(self):
        type(self).reads += len(self)
        return super().__iter__()

    def __getitem__(self, place):
        got = super().__getitem__(place)
        type(self).reads += len(got) if isinstance(place, slice) else 1
        return got


@pytest.mark.parametrize("host_reads", [True, False])
def test_no_token_is_read_a_second_time(host_reads):
    """The cost of a step does not grow with the context, whether the host reads or not."""
    params = SamplingParams(repetition_penalty=1.1, frequency_penalty=0.1, logit_bias={1: 2.0})
    tables, prompt, logits = AdjustTables(), Watched([3] * 1000), torch.zeros(1, V)
    Watched.reads = 0
    for count in range(20):
        known = Watched([4] * (count if host_reads else max(0, count - 1)))
        unread = SimpleNamespace(tokens=torch.tensor([4]), requests=["key"])
        context = RowContext(params, prompt, known, (), num_outputs=count)
        tables.adjust(logits, ["key"], [context], unread)
    assert Watched.reads == 1000 + (19 if host_reads else 0)


def test_whoever_asks_for_nothing_needs_no_memory():
    tables, logits = AdjustTables(), torch.zeros(2, V)
    nothing = RowContext(SamplingParams(), [1], [2], {3})
    assert tables.adjust(logits, ["a", "b"], [nothing] * 2) is logits
    assert (tables.num_seats, tables.num_bytes) == (0, 0)
    penalised = RowContext(SamplingParams(presence_penalty=1), [1], [2], {3})
    tables.adjust(logits, ["a", "b"], [nothing, penalised])
    assert tables.num_seats == 1
    assert tables.num_bytes == 4 * (4 * V + 3 * 4), "marks and knobs, of four seats at first"
    tables.release("a")
    assert tables.num_seats == 1
    tables.release("b")
    assert (tables.num_seats, tables.num_bytes) == (0, 0)


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 5))
def test_both_ways_to_penalise_are_one(seed, width, rows):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows + 2, width, generator=draw)
    where = torch.randperm(rows + 2, generator=draw)[:rows]
    marks = torch.randint(0, 7, (rows, width), generator=draw, dtype=torch.int32)
    marks *= torch.randint(0, 2, (rows, width), generator=draw, dtype=torch.int32)
    knobs = torch.rand(rows, 3, generator=draw) + 0.5
    results = [logits.clone() for _ in range(2)]
    for result, way in zip(results, (penalise_all, penalise_occurring), strict=True):
        way(result, where, marks, knobs)
    assert torch.equal(*results)
    untouched = [i for i in range(rows + 2) if i not in where.tolist()]
    assert torch.equal(results[0][untouched], logits[untouched])
    assert torch.equal(results[0][where][marks == 0], logits[where][marks == 0])


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 101])
def test_a_mask_arrives_as_it_was_sent(width):
    allowed = np.random.default_rng(width).random((3, width)) < 0.4
    packed = torch.from_numpy(np.packbits(allowed, axis=1, bitorder="little"))
    assert torch.equal(unpacked(packed, width), torch.from_numpy(allowed))


# --- in the engine --------------------------------------------------------------------------------

PENALISED = [
    SamplingParams(temperature=0, max_tokens=6, repetition_penalty=1.5, ignore_eos=True),
    SamplingParams(seed=3, max_tokens=5, frequency_penalty=1.5, stop_token_ids=[7, 9]),
    SamplingParams(seed=4, max_tokens=6, presence_penalty=-1.5, min_tokens=4, stop_token_ids=[5]),
    SamplingParams(seed=5, max_tokens=4, frequency_penalty=0.7, logit_bias={3: 4.0, 9: -2.0}),
    SamplingParams(seed=6, max_tokens=4),
]


@pytest.mark.parametrize("overlap", [True, False])
def test_nobody_can_tell_from_the_tokens_whether_there_are_tables(overlap):
    """Among them are requests that are preempted, and some that wait for a seat."""
    answers = {}
    for with_tables in (True, False):
        core = new_core(CONFIGS["sliding"], overlap=overlap, adjust_tables=with_tables, seats=3)
        requests = [core.add([1, 2, 3 + i, 2], params) for i, params in enumerate(PENALISED)]
        while core.has_work:
            if core.num_steps in (2, 5):
                core.queues.preempt(core.queues.running[-1], Schedule())
            core.step()
        answers[with_tables] = [request.output_ids for request in requests]
        assert core.tables is None or core.tables.num_seats == 0
    assert answers[True] == answers[False]


def test_with_tables_a_penalised_request_need_not_wait_for_the_host():
    core = new_core(CONFIGS["mamba and sliding"], overlap=True)
    request = core.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=6, presence_penalty=1))
    assert needs_host(request)
    assert not needs_host(request, has_tables=True)
    core.step()
    core.step()  # the second step was launched before the first one's token was read
    assert (len(request.output_ids), request.num_unread_tokens) == (1, 1)
    core.finish(request.request_id)
    assert core.tables.num_seats == 0


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.2}, {"presence_penalty": 1}, {"frequency_penalty": 1}]
)
def test_without_tables_every_penalty_waits_for_the_host(penalty):
    core = new_core(CONFIGS["mamba and sliding"], overlap=True, adjust_tables=False)
    assert needs_host(core.add([1, 2, 3], SamplingParams(**penalty)))
    assert not needs_host(core.add([1, 2, 3], SamplingParams(logit_bias={1: 1.0}, min_tokens=3)))
