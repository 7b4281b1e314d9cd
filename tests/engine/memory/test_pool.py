"""The pool of numbered places, against a model of it that fits in a dictionary.

Invariant tested: a place is free or owned, never both, and place 0 is neither.
"""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plamo_ref.engine.config import EngineError
from plamo_ref.engine.memory.pool import NULL_PLACE, Pool, PoolError
from plamo_ref.errors import PlamoRefError


class PoolAndItsModel(RuleBasedStateMachine):
    """Whatever is taken, shared, frozen and given back, the pool and two lists of owners agree."""

    @initialize(size=st.integers(2, 9))
    def start(self, size: int) -> None:
        self.pool, self.size = Pool("block", size), size
        self.held: list[int] = []  # a place for each owner
        self.frozen: list[int] = []

    @rule(count=st.integers(0, 9))
    def take(self, count: int) -> None:
        taken = {*self.held, *self.frozen}
        free = self.size - 1 - len(taken)
        if count > free:
            with pytest.raises(PoolError, match=f"block: {count} wanted, {free} free"):
                self.pool.take(count)
            return
        places = self.pool.take(count)
        assert len(places) == len(set(places)) == count
        assert not taken & set(places)
        assert all(0 < place < self.size for place in places)
        self.held += places

    def some_of(self, data: st.DataObject, places: list[int]) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(set(places))), unique=True))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        places = self.some_of(data, self.held)
        self.pool.give_back(places)
        for place in places:
            self.held.remove(place)

    @precondition(lambda self: self.held or self.frozen)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        places = self.some_of(data, self.held + self.frozen)
        self.pool.share(places)
        self.held += places

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def freeze(self, data: st.DataObject) -> None:
        places = self.some_of(data, self.held)
        self.pool.freeze(places)
        self.frozen += places
        for place in places:
            self.held.remove(place)

    @precondition(lambda self: self.frozen)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        places = self.some_of(data, self.frozen)
        self.pool.give_up(places)
        for place in places:
            self.frozen.remove(place)

    @rule(place=st.integers(-3, 12))
    def nothing_can_be_done_with_what_nobody_has(self, place: int) -> None:
        pool, everybody = self.pool, self.held + self.frozen
        moves = {"was given back": (pool.give_back, self.held)}
        moves["is to be frozen"] = pool.freeze, self.held
        moves["is to be given up"] = pool.give_up, self.frozen
        moves["is to be shared"] = pool.share, everybody
        for what, (move, owners) in moves.items():
            if place not in owners:
                with pytest.raises(PoolError, match=f"place {place} {what} but has no owner"):
                    move([place])

    @invariant()
    def agree(self) -> None:
        pool, everybody = self.pool, self.held + self.frozen
        taken, cold = set(everybody), set(self.frozen) - set(self.held)
        assert pool.capacity == self.size - 1
        assert pool.num_used == len(taken)
        assert pool.num_free == self.size - 1 - len(taken)
        assert (pool.num_evictable, pool.num_held) == (len(cold), len(set(self.held)))
        assert {place for place in range(self.size) if pool.is_evictable(place)} == cold
        assert pool.owners() == [everybody.count(place) for place in range(self.size)]
        assert pool.leaving(sorted(taken)) == sorted(p for p in taken if self.held.count(p) == 1)
        assert all(pool.is_alone([place]) == (everybody.count(place) == 1) for place in taken)
        assert sorted([*pool.free_places(), *taken]) == list(range(1, self.size))
        assert not pool.differences(Counter(everybody), Counter(self.frozen))


TestPoolAndItsModel = PoolAndItsModel.TestCase
TestPoolAndItsModel.settings = settings(max_examples=60, stateful_step_count=20)


def test_what_came_back_last_goes_out_first():
    pool = Pool("slot", 8)
    assert pool.take(3) == [1, 2, 3]
    pool.give_back([2])
    assert pool.take(2) == [2, 4]


def test_a_place_given_back_twice_is_refused():
    pool = Pool("slot", 4)
    (place,) = pool.take(1)
    pool.give_back([place])
    with pytest.raises(PoolError):
        pool.give_back([place])


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_a_pool_of_the_null_place_alone_is_refused(size):
    with pytest.raises(EngineError, match="one is reserved"):
        Pool("slot", size)


def test_copies_do_not_change_the_pool():
    pool = Pool("slot", 4)
    pool.owners()[1] = 5
    pool.free_places().clear()
    assert pool.owners() == [0, 0, 0, 0]
    assert pool.num_free == 3
    assert issubclass(PoolError, PlamoRefError)


@given(st.integers(2, 40))
def test_the_null_place_is_never_handed_out(size):
    assert NULL_PLACE not in Pool("block", size).take(size - 1)


def test_the_audit_tells_a_frozen_owner_from_one_at_work():
    """Each place has as many owners as are listed; they differ in which of them is frozen."""
    pool = Pool("full block", 4)
    a, b = pool.take(2)
    pool.freeze([a])
    listed = Counter([a, b])
    assert pool.differences(listed, Counter([a])) == []
    assert sorted(pool.differences(listed, Counter([b]))) == sorted(
        [
            f"full block {a} has 1 owners, 1 of them frozen, not 0",
            f"full block {b} has 1 owners, 0 of them frozen, not 1",
        ]
    )
