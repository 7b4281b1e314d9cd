"""Lesson 13's picture of two clocks: a bar is as long as the time that it stands for."""

from plamo_ref.teaching.two_clocks import timeline


def test_each_way_has_a_row_of_the_host_above_one_of_the_gpu():
    ways = {"one by one": ([(0, 3), (3, 6)], [(3, 5), (6, 8)]), "graph": ([(0, 3)], [(3, 5)])}
    (ax,) = timeline(ways, "units").axes
    names = ["one by one: host", "one by one: GPU", "graph: host", "graph: GPU"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert list(ax.get_yticks()) == [0, -1, -2, -3]
    boxes = [[path.get_extents() for path in row.get_paths()] for row in ax.collections]
    assert [[(box.x0, box.x1) for box in row] for row in boxes] == [
        [(0, 3), (3, 6)], [(3, 5), (6, 8)], [(0, 3)], [(3, 5)],
    ]  # fmt: skip
    assert ax.get_xlabel() == "time, units"
