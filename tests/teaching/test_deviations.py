"""What other implementations do differently.

Invariant tested: each deviation leaves the text alone up to where it has to begin, and not a token
longer; nothing but the deviation makes a difference.
"""

import pytest
import torch

from plamo_ref.teaching.deviations import (
    DEVIATIONS,
    Deviation,
    departures,
    describe_departures,
    draw_departures,
    long_memory_config,
    long_memory_weights,
)

WINDOW, TOKENS = 16, 48


@pytest.fixture(scope="module")
def found():
    config = long_memory_config(WINDOW)
    ids = torch.randint(6, 640, (TOKENS,), generator=torch.Generator().manual_seed(2))
    ways = [*DEVIATIONS, Deviation("nothing")]
    return {d.name: d for d in departures(config, long_memory_weights(config), ids, ways)}


def test_nothing_changed_is_nothing_different(found):
    assert found["nothing"].begins is None
    assert found["nothing"].first_other_token is None
    assert max(found["nothing"].errors) < 1e-12


def test_a_window_matters_from_where_it_is_full(found):
    """Token W, counted from 0, is the first that has W keys before it and sees them all."""
    assert found["W keys instead of W + 1"].begins == WINDOW
    assert found["no window"].begins == WINDOW + 1


def test_rope_and_states_matter_from_the_second_token_on(found):
    for name in ("one RoPE base", "no full layer", "a state in bfloat16"):
        assert found[name].begins == 1, name


def test_every_deviation_changes_the_text_in_the_end(found):
    for deviation in DEVIATIONS:
        departure = found[deviation.name]
        assert departure.first_other_token is not None, deviation.name
        assert departure.begins <= departure.first_other_token < TOKENS


def test_errors_are_the_largest_of_so_many_tokens(found):
    config = long_memory_config(WINDOW)
    ids = torch.randint(6, 640, (TOKENS,), generator=torch.Generator().manual_seed(2))
    (coarse,) = departures(config, long_memory_weights(config), ids, DEVIATIONS[1:2], every=10)
    fine = found["W keys instead of W + 1"].errors
    assert coarse.errors == [max(fine[at : at + 10]) for at in range(0, TOKENS, 10)]


def test_the_figure_shows_all_of_them(found):
    fig = draw_departures(list(found.values()), WINDOW)
    (axes,) = fig.axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(found)
    assert "no window: from token 17 on" in describe_departures(list(found.values()))
