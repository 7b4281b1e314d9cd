"""What lesson 14 draws and judges with: maps of cut tensors, parts to cut, bars of parts.

Invariant tested: a map shows what each rank has and nothing else; a part of a rank takes no tensor
of another shape; what the package cuts is the whole again when it is added.
"""

import matplotlib.colors as colours
import pytest
import torch

from plamo_ref.bench.shapes import SHAPES
from plamo_ref.teaching.diagrams import stacks
from plamo_ref.teaching.figures import style_of
from plamo_ref.teaching.parts import PLACES, Parts, package_cut
from plamo_ref.teaching.shards import layers_map, owners, sharding_map

ALL = slice(None)


def test_parts_of_a_tensor_have_their_owners_and_neighbours_of_one_owner_are_one():
    halves = [[(slice(0, 2),)], [(slice(2, 3),), (slice(3, 4),)]]
    assert owners((4, 6), halves) == (0, [(0, 2, (0,)), (2, 4, (1,))])
    columns = [[(ALL, slice(0, 3))], [(ALL, slice(3, 6))]]
    assert owners((4, 6), columns) == (1, [(0, 3, (0,)), (3, 6, (1,))])
    assert owners((4, 6), [[(ALL,)], [(ALL,)]]) == (0, [(0, 4, (0, 1))])
    shared = [[(slice(0, 3),)], [(slice(2, 4),)]]
    assert owners((4,), shared) == (0, [(0, 2, (0,)), (2, 3, (0, 1)), (3, 4, (1,))])


def test_what_nobody_has_is_white_and_says_nothing():
    fig = sharding_map({"w": (8, 8)}, lambda _, rank: [(slice(4 * rank, 4 * rank + 2),)], 2)
    boxes = [colours.to_hex(patch.get_facecolor()) for patch in fig.axes[0].patches]
    blue, orange = style_of(0).colour.lower(), style_of(1).colour.lower()
    assert boxes == [blue, "#ffffff", orange, "#ffffff"]
    assert "all" not in [text.get_text() for text in fig.axes[0].texts]


def test_the_map_says_which_keys_all_ranks_have():
    for name, said in (("1b", 1), ("8b", 0)):
        texts = [text.get_text() for text in layers_map(SHAPES[name], 4).axes[0].texts]
        assert texts.count("all") == said
        assert len([text for text in texts if "_proj" in text]) == 8


def test_a_part_refuses_a_wrong_shape_and_is_the_whole_when_ranks_are_added():
    parts = Parts.random(seed=3)
    for name in ("MLP", "attention"):
        for size in (2, 4):
            added = parts.added(name, package_cut(parts.config, name), size)
            torch.testing.assert_close(added, parts.whole(name), rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match=r"size mismatch for down_proj\.weight"):
        parts.says("MLP", parts.weights["MLP"], size=2)


def test_random_parts_are_the_same_again_and_hide_nothing():
    one, other = Parts.random(seed=3), Parts.random(seed=3)
    assert torch.equal(one.x, other.x)
    for name in PLACES:
        for key, tensor in one.weights[name].items():
            assert torch.equal(tensor, other.weights[name][key])
            assert len(tensor.unique()) == tensor.numel(), key


def test_a_mistake_changes_its_tensors_alone():
    parts = Parts.random(seed=3)
    right = parts.by_package("attention")
    wrong = parts.by_package("attention", lambda w, rank, size: {"q_weight": w["q_weight"]})
    assert list(right) == list(wrong) == [f"rank {r} of {n}" for n in (2, 4) for r in range(n)]
    for rank, own in right.items():
        assert {k for k in own if not torch.equal(own[k], wrong[rank][k])} == {"q_weight"}


def test_stacked_bars_are_shares_of_their_groups_first_and_carry_their_sums():
    groups = {"a": {"1": [4.0, 0.0], "2": [2.0, 1.0]}, "b": {"1": [10.0, 0.0]}}
    fig = stacks(groups, ("own", "other"))
    heights = [patch.get_height() for patch in fig.axes[0].patches]
    assert heights == [1, 0, 0.5, 0.25, 1, 0]
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert texts == ["4.0", "3.0", "a", "10.0", "b"]
    assert len(fig.legends[0].get_texts()) == 2
