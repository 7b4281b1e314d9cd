"""traffic() counts the passes over memory of a function in plain torch.

Invariant tested: operations that move bytes are counted with what they read and write, views are
not, a gather counts the rows it takes and not the memory they are in.
"""

import torch

from plamo_ref.teaching.traffic import Operation, traffic


def test_each_operation_reads_its_inputs_and_writes_its_result():
    x, gain = torch.ones(8, 4), torch.ones(4)  # 128 and 16 bytes
    assert traffic(lambda: (x * gain).sum()) == [
        Operation("mul", 144, 128),
        Operation("sum", 128, 4),
    ]


def test_views_and_shapes_move_nothing():
    x = torch.ones(8, 4)
    views = traffic(lambda: (x.T, x[2:], x.view(-1), x[None].expand(3, 8, 4), x.chunk(2), x.shape))
    assert views == []


def test_an_expanded_dimension_is_read_once():
    x = torch.ones(8, 1).expand(8, 4)  # 32 bytes in memory
    assert traffic(lambda: x + 1) == [Operation("add", 32, 128)]


def test_rows_that_are_taken_or_written_count_not_the_memory_they_are_in():
    cache, rows = (
        torch.zeros(100, 4),
        torch.tensor([7, 3]),
    )  # 2 rows: 32 bytes, 16 for their numbers
    assert traffic(lambda: cache[rows]) == [Operation("gather rows", 48, 32)]

    def write() -> None:
        cache[rows] = torch.ones(2, 4)

    assert traffic(write)[-1] == Operation("write rows", 48, 32)
    assert cache[7].tolist() == [1, 1, 1, 1]


def test_in_place_operations_read_and_write():
    x = torch.ones(8, 4)
    assert traffic(lambda: x.mul_(2)) == [Operation("mul", 128, 128)]
