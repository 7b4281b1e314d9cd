"""watch() sees what the programs of a kernel do, and stops them before they do harm.

Invariant tested: every element that was loaded or stored is attributed to the program that did it;
an access outside of the tensors raises, names program and tensor, and leaves memory as it was.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from plamo_ref.bench.kernels.cases import SMALL, Maker, paged_case
from plamo_ref.kernels.choice import triton_table
from plamo_ref.teaching.watching import WatchError, touch_map, watch


@triton.jit
def double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, 2 * x, mask=i < n)


def tensors():
    return {"x": torch.arange(10.0), "out": torch.zeros(10)}


def test_each_element_is_attributed_to_its_program():
    t = tensors()
    with watch(**t) as seen:
        double_kernel[(3,)](t["x"], t["out"], 10, BLOCK=4)
    assert torch.equal(t["out"], 2 * t["x"])
    assert seen.programs("out", "store").tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert (seen.programs("x", "store") == -1).all()
    assert (seen.counts("x", "load") == 1).all()
    assert seen.moved_bytes("load") == seen.moved_bytes("store", "out") == 40
    assert np.flatnonzero(seen.only((1,)).counts("x", "load")).tolist() == [4, 5, 6, 7]
    nobody, stored = touch_map(seen, "store", "x", "out").axes
    assert not nobody.texts
    assert [text.get_text() for text in stored.texts] == ["0", "1", "2"]
    assert [box.get_width() for box in stored.patches] == [10, 4, 4, 2]


@pytest.mark.parametrize("n", [11, 12])
def test_an_access_behind_the_end_is_refused(n):
    t = tensors()
    refused = pytest.raises(WatchError, match=r"program \(2, 0, 0\) loads element 10 of x.*mask")
    with refused, watch(**t):
        double_kernel[(3,)](t["x"], t["out"], n, BLOCK=4)
    assert t["out"].tolist() == [*range(0, 16, 2), 0, 0]


def test_a_tensor_that_is_not_watched_is_refused_unless_others_are_allowed():
    t = tensors()
    with pytest.raises(WatchError, match=r"in none of|in front of|element"), watch(x=t["x"]):
        double_kernel[(3,)](t["x"], t["out"], 10, BLOCK=4)
    with watch(others=True, x=t["x"]) as seen:
        double_kernel[(3,)](t["x"], t["out"], 10, BLOCK=4)
    assert [a.tensor for a in seen.accesses] == ["x", ""] * 3


def test_an_error_of_the_kernel_itself_comes_through_and_watching_ends():
    from triton.runtime.interpreter import InterpreterError

    t = tensors()
    with pytest.raises(InterpreterError), watch(**t) as seen:
        double_kernel[(3,)](t["x"], None, 10, BLOCK=4)
    before = len(seen.accesses)
    double_kernel[(3,)](t["x"], t["out"], 10, BLOCK=4)
    assert len(seen.accesses) == before


def test_what_cannot_be_watched_is_said():
    with pytest.raises(WatchError, match="x must be contiguous"), watch(x=torch.zeros(4, 4).T):
        pass


def test_paged_decode_reads_exactly_the_keys_that_are_seen():
    """The package's kernel, watched: one load for each seen key, none for any other."""
    case = paged_case(Maker(torch.device("cpu"), torch.float32), SMALL[0], [(9, 1), (2, 1)], 6)
    _, keys, values, table, first, lens, window = case.arguments
    with watch(others=True, keys=keys, values=values) as seen:
        triton_table().paged_decode(*case.arguments)
    counts = seen.counts("keys", "load")[:, :, :, 0]  # [blocks, rows, G]
    expected = np.zeros_like(counts)
    for row, (length, start) in enumerate(zip(lens.tolist(), first.tolist(), strict=True)):
        for position in range(max(0, length - 1 - window), length):
            block = int(table[row, position // keys.shape[1] - start])
            expected[block, position % keys.shape[1]] += 1
    assert np.array_equal(counts, expected)
    assert np.array_equal(seen.counts("values", "load")[:, :, :, 0], expected)
