"""The pool of numbered places, against a model of it that fits in a dictionary.

Invariant tested: a place is free or owned, never both, and place 0 is neither.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plamo_ref.engine.config import EngineError
from plamo_ref.engine.memory.pool import NULL_PLACE, Pool, PoolError
from plamo_ref.errors import PlamoRefError


class PoolAndItsModel(RuleBasedStateMachine):
    """Whatever is taken and given back, the pool and a set of taken places agree."""

    @initialize(size=st.integers(2, 9))
    def start(self, size: int) -> None:
        self.pool, self.size = Pool("block", size), size
        self.taken: set[int] = set()

    @rule(count=st.integers(0, 9))
    def take(self, count: int) -> None:
        free = self.size - 1 - len(self.taken)
        if count > free:
            with pytest.raises(PoolError, match=f"block: {count} wanted, {free} free"):
                self.pool.take(count)
            return
        places = self.pool.take(count)
        assert len(places) == len(set(places)) == count
        assert not self.taken & set(places)
        assert all(0 < place < self.size for place in places)
        self.taken |= set(places)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        places = data.draw(st.lists(st.sampled_from(sorted(self.taken)), unique=True))
        self.pool.give_back(places)
        self.taken -= set(places)

    @rule(place=st.integers(-3, 12))
    def give_back_what_nobody_has(self, place: int) -> None:
        if place not in self.taken:
            with pytest.raises(PoolError, match=f"place {place} was given back but has no owner"):
                self.pool.give_back([place])

    @invariant()
    def agree(self) -> None:
        assert self.pool.capacity == self.size - 1
        assert self.pool.num_used == len(self.taken)
        assert self.pool.num_free == self.size - 1 - len(self.taken)
        assert self.pool.owners() == [int(place in self.taken) for place in range(self.size)]
        everything = sorted(self.pool.free_places() + sorted(self.taken))
        assert everything == list(range(1, self.size))


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
