"""The protocol of sums that their readers make, in every order in which ranks can act.

Invariant tested: whatever the order, each rank reads what the others put there for the same turn,
and somebody can always go on; with one half of the memory fewer, or without a wait, an order is
found that reads something else. That the kernel is this protocol, two processes show in
tests/interpreted.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch

from plamo_ref.parallel import peers

TURNS = 4


@dataclass(frozen=True)
class Rules:
    """Of the kernel (kernels/norm/triton_peers.py): how many halves, and whether it waits."""

    halves: int = 2
    waits: bool = True


@dataclass(frozen=True)
class State:
    """Of all ranks.

    Attributes:
        at: of each rank, how many of its acts are done.
        put: of each rank, the turn whose numbers are in each part of its memory.
        flags: of each rank, what everybody has said in its memory.
    """

    at: tuple[int, ...]
    put: tuple[tuple[int, ...], ...]
    flags: tuple[tuple[int, ...], ...]


Act = tuple[str, int, int]  # what, the turn, whom it concerns


def acts(rank: int, size: int) -> list[Act]:
    """What a rank does, one after the other, each at an instant."""
    others = [peer for peer in range(size) if peer != rank]
    found: list[Act] = []
    for turn in range(1, TURNS + 1):
        found.append(("put", turn, rank))
        found += [("say", turn, peer) for peer in (rank, *others)]
        found += [("wait", turn, peer) for peer in others]
        found += [("read", turn, peer) for peer in others]
    return found


def successors(state: State, rules: Rules) -> Iterator[State]:
    """Every state that one act of one rank leads to.

    Raises:
        AssertionError: a rank reads the numbers of another turn.
    """
    size = len(state.at)
    for rank in range(size):
        todo = acts(rank, size)
        if state.at[rank] == len(todo):
            continue
        what, turn, peer = todo[state.at[rank]]
        put, flags = [list(each) for each in state.put], [list(each) for each in state.flags]
        if what == "put":
            put[rank][turn % rules.halves] = turn
        elif what == "say":
            flags[peer][rank] = turn
        elif what == "wait":
            if rules.waits and flags[rank][peer] < turn:
                continue  # not yet
        else:
            found = put[peer][turn % rules.halves]
            assert found == turn, f"rank {rank} reads turn {found} of rank {peer}, not {turn}"
        at = list(state.at)
        at[rank] += 1
        yield State(tuple(at), tuple(map(tuple, put)), tuple(map(tuple, flags)))


def explore(size: int, rules: Rules) -> int:
    """Walk through every order; how many states there are.

    Raises:
        AssertionError: a wrong read, or nobody can go on before the end.
    """
    start = State((0,) * size, ((0,) * rules.halves,) * size, ((0,) * size,) * size)
    ends = tuple(len(acts(rank, size)) for rank in range(size))
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        following = [*successors(state, rules)]
        assert following or state.at == ends, f"nobody can go on: {state}"
        todo += {*following} - seen
        seen.update(following)
    return len(seen)


@pytest.mark.parametrize("size", [2, 3])
def test_every_order_reads_what_belongs_to_the_turn_and_nobody_waits_for_ever(size):
    assert explore(size, Rules()) >= 100


@pytest.mark.parametrize(
    ("size", "rules"), [*product([2, 3], [Rules(halves=1), Rules(waits=False)])]
)
def test_with_one_half_only_or_without_waiting_some_order_reads_something_else(size, rules):
    with pytest.raises(AssertionError, match=r"rank \d reads turn \d of rank \d, not \d"):
        explore(size, rules)


def test_what_opens_a_gpus_memory_is_told_in_numbers_and_bytes(monkeypatch):
    """Two ranks on two GPUs, without GPUs: each opens the other's handle on its own device."""
    asked = []

    def memory_of(rank: int) -> tuple[object, ...]:
        handle = bytes([rank + 1, 0, 7, 0])
        where = (rank, handle, 800, 256, False, b"count\0", 3, b"event\0", True)
        return (torch.Tensor, torch.Size([10]), (1,), 0, object, torch.int64, *where)

    def rebuild(**arguments):
        asked.append(arguments)
        return torch.ones(10, dtype=torch.int64)

    signature = inspect.signature(peers.rebuild_cuda_tensor)
    monkeypatch.setattr(peers, "signature", lambda _: signature)
    monkeypatch.setattr(peers, "rebuild_cuda_tensor", rebuild)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda here, there: here != there)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda n, dtype, device: zeros(n, dtype=dtype))
    told = []

    def share(rank: int, exchange: peers.Exchange) -> list[torch.Tensor]:
        monkeypatch.setattr(peers, "reduce_tensor", lambda memory: (None, memory_of(rank)))
        return peers._over_ipc(exchange, 10, rank, torch.device("cuda", rank))

    share(1, lambda mine: told.append(mine) or [mine, mine])
    theirs = told[0] + b"\0\0"  # padded, as the longest of all is
    asked.clear()
    assert len(share(0, lambda mine: [mine, theirs])) == 2
    (opened,) = asked
    assert opened["storage_handle"] == b"\2\0\7\0"
    assert opened["event_handle"] == b"event\0"
    assert (opened["tensor_cls"], opened["dtype"]) == (torch.Tensor, torch.int64)
    assert opened["storage_device"] == 0
    assert opened["event_sync_required"] is False
    assert opened["requires_grad"] is False
    assert opened["storage_offset_bytes"] == 256


def test_files_of_ranks_are_gone_once_they_are_mapped():
    told = []

    def exchange(mine: bytes) -> list[bytes]:
        told.append(mine)
        return [mine]

    (memory,) = peers._in_files(exchange, 5, 0, torch.device("cpu"))
    memory[3] = 9
    assert memory.tolist() == [0, 0, 0, 9, 0]
    assert not Path(told[0].removesuffix(peers.END).decode()).exists()
