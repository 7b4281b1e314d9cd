"""Token ids to text as it grows, with stop strings.

Invariant tested: the pieces, joined, are the final text; nothing that could still become a stop
string comes out before that is decided.
"""

import itertools
import random
from dataclasses import dataclass

import pytest
from engines import GREEDY
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.intake.hub import find
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.stream import TextStream
from plamo_ref.text.tokenizer import Plamo2Tokenizer

TOKENIZER = Plamo2Tokenizer.from_folder(find("tiny"))
RARE = "\U0001f9ff"  # not in the vocabulary: four BYTE tokens
SHORT = st.text("ab", min_size=1, max_size=4)


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_bos=False)


def letters(text: str) -> list[int]:
    """One token a character, so that stop strings are spread over tokens."""
    return [encoded(character)[0] for character in text]


def stream(ids: list[int], **params: object) -> tuple[TextStream, list[str]]:
    """Push until a stop string appears; the pieces, `finish`'s included."""
    made = TextStream(TOKENIZER, SamplingParams(**params))  # type: ignore[arg-type]
    pieces = []
    for token in ids:
        pieces.append(made.push(token))
        if made.stopped_by is not None:
            break
    return made, [*pieces, made.finish()]


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30), st.booleans())
def test_without_stop_strings_the_pieces_are_the_decoded_text(ids, skip):
    made, pieces = stream(ids, skip_special_tokens=skip)
    assert "".join(pieces) == made.text == TOKENIZER.decode(ids, skip_special_tokens=skip)


@given(text=st.text("ab", max_size=20), stops=st.lists(SHORT, max_size=3), include=st.booleans())
def test_the_text_ends_at_the_first_stop_string(text, stops, include):
    made, pieces = stream(letters(text), stop=stops, include_stop_str_in_output=include)
    assert "".join(pieces) == made.text
    # One character at a time: the stop string that is complete first ends the text; of several
    # that are complete at once the one that begins first.
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not ends:
        assert (made.text, made.stopped_by) == (text, None)
        return
    end, _, stop = min(ends)
    assert made.stopped_by == stop
    assert made.text == text[: end if include else end - len(stop)]


@given(text=st.text("ab", max_size=20), stops=st.lists(SHORT, max_size=3), seed=st.integers(0, 9))
def test_however_the_text_is_cut_into_tokens_no_piece_is_taken_back(text, stops, seed):
    rng, ids = random.Random(seed), []
    rest = text
    while rest:  # tokens of one letter or of what the tokenizer makes of several
        size = rng.randint(1, 4)
        ids += encoded(rest[:size])
        rest = rest[size:]
    made, pieces = stream(ids, stop=stops)
    assert "".join(pieces) == made.text
    assert text.startswith(made.text)
    assert (made.stopped_by is None) == (not any(stop in text for stop in stops))


def test_what_could_become_a_stop_string_waits():
    made = TextStream(TOKENIZER, SamplingParams(stop="abc"))
    assert [made.push(token) for token in letters("xabab")] == ["x", "", "", "ab", ""]
    assert made.finish() == "ab"
    assert made.text == "xabab"


def test_a_stop_string_over_several_tokens_never_shows():
    made, pieces = stream(letters("xxabcyy"), stop=["abc"])
    assert pieces == ["x", "x", "", "", "", ""]
    assert (made.text, made.stopped_by) == ("xx", "abc")
    assert made.push(letters("y")[0]) == ""
    assert made.text == "xx"


def test_a_character_in_bytes_comes_out_whole():
    ids = encoded(RARE)
    made = TextStream(TOKENIZER, GREEDY)
    assert [made.push(token) for token in ids] == ["", "", "", RARE]


def test_half_a_character_at_the_end_is_a_replacement_and_can_be_a_stop_string():
    ids = encoded(RARE)[:2]
    made, pieces = stream(ids)
    assert pieces[-1] == made.text == "\ufffd"
    made, _ = stream(ids, stop="\ufffd")
    assert (made.text, made.stopped_by) == ("", "\ufffd")


def test_special_tokens_are_not_text_unless_asked_for():
    special = min(TOKENIZER.special_ids)
    assert stream([special])[0].text == ""
    assert stream([special], skip_special_tokens=False)[0].text == TOKENIZER.decode([special])


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4])
def test_no_stop_string_ends_in_the_first_tokens_but_it_may_begin_there(free):
    made, pieces = stream(letters("abab"), stop="ab", min_tokens=free)
    assert "".join(pieces) == made.text == {0: "", 1: "", 2: "ab", 3: "ab", 4: "abab"}[free]


@given(
    st.lists(st.integers(0, TOKENIZER.vocab_size + 3), max_size=20), st.booleans(), st.booleans()
)
def test_all_tokens_at_once_are_the_text_that_they_are_one_by_one(ids, skip, stops):
    """Halves of characters, special tokens and rows without a text are among them."""
    for include in (False, True):
        params = {"skip_special_tokens": skip, "include_stop_str_in_output": include}
        one_by_one, _ = stream([], **params)
        for place, token in enumerate(ids, start=1):
            last = place == len(ids)
            one_by_one.take(token, is_stop=stops and last, is_last=last)
        at_once, _ = stream([], **params)
        at_once.take_all(ids, ends_in_stop=stops and bool(ids))
        assert at_once.text == one_by_one.text


# --- any cut -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnyTokens:
    """A tokenizer whose tokens are given: token i is the i-th piece of a text's bytes."""

    pieces: list[bytes]
    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, cut anywhere, in the middle of characters too; a piece may be empty."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def first_complete(text: str, stops: list[str], after: int) -> tuple[str, int, int] | None:
    """Which stop string is complete first (begins first, of several), and where it lies."""
    for end in range(after + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return longest, end - len(longest), end
    return None


@given(
    text=st.text("aあb🦙", max_size=16),
    stops=st.lists(st.text("aあb🦙", min_size=1, max_size=5), max_size=4),
    places=st.lists(st.integers(0, 60), max_size=8),
    free=st.integers(0, 5),
    include=st.booleans(),
)
def test_where_a_text_ends_does_not_depend_on_how_it_was_cut_into_tokens(
    text, stops, places, free, include
):
    pieces = cut(text.encode(), places)
    params = SamplingParams(
        stop=stops, include_stop_str_in_output=include, min_tokens=free, max_tokens=99
    )
    made, came = TextStream(AnyTokens(pieces), params), []  # type: ignore[arg-type]
    for token in range(len(pieces)):
        came.append(made.push(token))
        if made.stopped_by is not None:
            break
    came.append(made.finish())
    assert "".join(came) == made.text
    protected = len(b"".join(pieces[:free]).decode(errors="ignore"))
    found = first_complete(text, stops, protected)
    if found is None:
        assert (made.text, made.stopped_by) == (text, None)
    else:
        stop, start, end = found
        assert (made.text, made.stopped_by) == (text[: end if include else start], stop)


@pytest.mark.parametrize("ids", [[TOKENIZER.id_of("ている")], letters("ている")], ids=["1", "3"])
def test_one_token_with_two_stop_strings_ends_where_three_would(ids):
    made, _ = stream(ids, stop=["ている", "い"])
    assert (made.text, made.stopped_by) == ("て", "い")


# --- stop tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("include", "text"), [(False, "xa"), (True, "xab")])
def test_a_stop_token_has_text_only_where_that_is_asked_for(include, text):
    made = TextStream(TOKENIZER, SamplingParams(stop="ac", include_stop_str_in_output=include))
    *before, last = letters("xab")
    pieces = [made.push(token) for token in before]
    assert pieces == ["x", ""], "a could become a stop string"
    assert "".join([*pieces, made.push_stop(last), made.finish()]) == made.text == text


def test_a_special_stop_token_has_text_only_where_special_tokens_have():
    special = min(TOKENIZER.special_ids)
    for skip, text in ((True, ""), (False, TOKENIZER.decode([special]))):
        params = SamplingParams(include_stop_str_in_output=True, skip_special_tokens=skip)
        assert TextStream(TOKENIZER, params).push_stop(special) == text
