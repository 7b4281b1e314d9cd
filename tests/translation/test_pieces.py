"""Documents in pieces.

Invariant tested: nothing of a document is lost or moved; pieces are as short as they must be, and
end where a reader would pause if they can.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.translation.pieces import Piece, halves, joint, paragraphs, shortened

TEXTS = st.lists(
    st.sampled_from(
        [
            "a",
            "Bc",
            "吾輩",
            "猫。",
            "!",
            "?」",
            ". ",
            " ",
            "\n",
            "\n\n",
            "　",
            "\t",
            "、",
            "…",
            ".5",
        ]
    ),
    max_size=40,
).map("".join)


def joined(pieces: list[Piece]) -> str:
    return "".join(text + after for text, after in pieces)


@given(TEXTS)
def test_paragraphs_are_the_document(text):
    before, pieces = paragraphs(text)
    assert before + joined(pieces) == text
    assert not before.strip()
    for piece in pieces:
        assert piece.text == piece.text.strip() != ""
        assert not piece.after.strip()
        assert "\n\n" not in piece.text


@given(TEXTS.filter(str.strip), st.integers(1, 12))
def test_shortened_is_the_piece_in_short_parts(text, limit):
    piece = Piece(text.strip(), "\n")
    parts = shortened(piece, limit, len)
    assert joined(parts) == joined([piece])
    assert all(0 < len(part.text) <= limit for part in parts)
    if len(piece.text) <= limit:
        assert parts == [piece]


@given(TEXTS.filter(str.strip))
def test_halves_are_the_piece(text):
    piece = Piece(text.strip(), " ")
    parts = halves(piece)
    assert len(parts) in (1, 2)
    assert joined(parts) == joined([piece])
    assert all(part.text for part in parts)


def test_paragraphs_are_cut_at_empty_lines_alone():
    before, pieces = paragraphs("\n Title\n\nOne.\nTwo. \n \n\nThree\n")
    assert before == "\n "
    assert pieces == [Piece("Title", "\n\n"), Piece("One.\nTwo.", " \n \n\n"), Piece("Three", "\n")]


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One. Two. Three.", 9, ["One. Two.", "Three."]),
        ("Pi is 3.14. Good.", 12, ["Pi is 3.14.", "Good."]),
        ("「猫である。」名前はない。", 8, ["「猫である。」", "名前はない。"]),
        ("He said “No!” Then he left.", 14, ["He said “No!”", "Then he left."]),
        ("first line\nsecond line", 12, ["first line", "second line"]),
        ("猫、犬、鳥", 4, ["猫、犬、", "鳥"]),
        ("one two three", 8, ["one two", "three"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
    ],
)
def test_a_long_paragraph_is_cut_where_a_reader_would_pause(text, limit, parts):
    assert [part.text for part in shortened(Piece(text), limit, len)] == parts


def test_halves_are_cut_behind_the_sentence_nearest_to_the_middle():
    assert halves(Piece("A. B. Cccccccc. D.", "\n")) == [
        Piece("A. B.", " "),
        Piece("Cccccccc. D.", "\n"),
    ]
    assert halves(Piece("One sentence of many words.")) == [Piece("One sentence of many words.")]


@pytest.mark.parametrize(
    ("left", "after", "right", "between"),
    [
        ("It is a cat.", "", "It has no name.", " "),
        ("It is a cat.", "　", "It has no name.", " "),
        ("猫である。", " ", "名前はない。", ""),
        ("猫である。", "\n\n", "名前はない。", "\n\n"),
        ("", "", "x", ""),
    ],
)
def test_translated_pieces_are_joined_as_their_script_joins_sentences(left, after, right, between):
    assert joint(left, after, right) == between
