"""Values where they enter: NumPy's and torch's become Python's own, and others are refused.

Invariant tested: what is read is exactly of Python's own types, whoever made it.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from junk import JUNK

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.values import (
    Flag,
    Kind,
    Listed,
    Mapped,
    NoneFor,
    Number,
    OneOf,
    Seed,
    Text,
    Whole,
    read,
    shown,
)

COUNT = Whole("1 to 9", least=1, most=9)
SHARE = Number("at most 1", lambda x: not x > 1)  # of itself this would take NaN


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_an_integer_is_one_whoever_made_it(value):
    number = COUNT.read(value)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.bool_(True), torch.tensor(True), 3.0, "3", np.float64(3), None, 0, 10),
        *(torch.tensor([3]), np.array([3]), torch.empty((), dtype=torch.int64, device="meta")),
        pytest.param(10**5000, id="5,001 digits"),
    ],
)
def test_what_only_looks_like_an_integer_is_refused(value):
    with pytest.raises(PlamoRefError, match=r"count must be (an integer, )?1 to 9, not "):
        read(PlamoRefError, "count", value, COUNT)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_number_is_one_whoever_made_it(value):
    number = SHARE.read(value)
    assert (number, type(number)) == (0.5, float)


@pytest.mark.parametrize("value", [True, "0.5", math.nan, 1.5, -(10**400), 1j, np.array([0.5])])
def test_what_is_no_number_or_too_large_is_refused(value):
    with pytest.raises(PlamoRefError, match=r"share must be (a number, )?at most 1, not "):
        read(PlamoRefError, "share", value, SHARE)


def test_what_counts_as_endless_is_clipped_only_where_that_was_said():
    assert Whole("any", clipped=True).read(2**70) == 2**63 - 1
    with pytest.raises(ValueError, match="any"):
        Whole("any").read(2**70)


@pytest.mark.parametrize("seed", [2**64, 2**200 + 7, -(2**63) - 1, -(2**90)])
def test_a_long_seed_fits_into_64_bits_and_draws_the_same(seed):
    short = Seed().read(seed)
    assert -(2**63) <= short < 2**64
    assert (short - seed) % 2**64 == 0
    assert Seed().read(-5) == -5


def test_lists_and_mappings_are_read_item_by_item():
    ids = Listed("ids", Whole("0 or more"))
    assert ids.read(np.array([1, 2])) == (1, 2)
    assert ids.read(x for x in (1, torch.tensor(2))) == (1, 2)
    assert Listed("texts", Text(), alone=True).read("ab") == ("ab",)
    assert Mapped("biases", COUNT, SHARE).read({np.int64(3): 1}) == {3: 1.0}
    for wrong in ("12", b"12", {1: 2}, 5, [1, "2"], [1.0], [-1]):
        with pytest.raises(PlamoRefError, match="field must be ids, not "):
            read(PlamoRefError, "field", wrong, ids)


def test_none_is_what_was_said():
    assert NoneFor(COUNT).read(None) is None
    assert NoneFor(COUNT, 4).read(None) == 4
    for kind, wanted in ((NoneFor(COUNT), "1 to 9, or None"), (NoneFor(COUNT, 4), "1 to 9")):
        with pytest.raises(PlamoRefError, match=f"^n must be {wanted}, not 0$"):
            read(PlamoRefError, "n", 0, kind)
    with pytest.raises(PlamoRefError, match="not None: leave it out for the default"):
        read(PlamoRefError, "n", None, COUNT)


def test_half_a_character_is_no_text():
    with pytest.raises(ValueError, match="surrogates"):
        Text().read("a\ud800")


def test_a_value_in_a_message_is_one_short_line_whatever_it_is():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, "x" * 9999, Rude(), torch.zeros(50, 50), deep, "a\nb"):
        text = shown(value)
        assert len(text) <= 81
        assert "\n" not in text


@given(JUNK)
def test_every_kind_reads_or_refuses_by_name(value):
    kinds: list[Kind] = [COUNT, SHARE, Flag(), Text(), Seed(), OneOf(("a", "b"))]
    kinds += [Listed("a list", COUNT), Mapped("a mapping", COUNT, SHARE), NoneFor(COUNT)]
    for kind in kinds:
        try:
            result = read(PlamoRefError, "field", value, kind)
        except PlamoRefError as error:
            assert str(error).startswith("field must be ")  # noqa: PT017
        else:
            assert type(result) in (int, float, bool, str, tuple, dict, type(None))
