"""The tokenizer: golden ids of the makers' own tokenizer, brute force, streaming, and its files."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.errors import PlamoRefError
from plamo_ref.text.detokenizer import IncrementalDetokenizer
from plamo_ref.text.tokenizer import (
    NO_PIECE,
    Plamo2Tokenizer,
    Row,
    TokenizerError,
    cheapest_pieces,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "tok_a"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
TOKENIZER = Plamo2Tokenizer.from_folder(GOLDEN)
CONTROL_ROWS: list[Row] = [
    ("<|plamo:unk|>", 0.0, "UNKNOWN"),
    ("<|plamo:bos|>", 0.0, "CONTROL"),
    ("<|plamo:eos|>", 0.0, "CONTROL"),
    ("<|plamo:pad|>", 0.0, "CONTROL"),
    ("<|plamo:op|>", 0.0, "CONTROL"),
]
BYTE_ROWS: list[Row] = [(f"<0x{value:02X}>", 0.0, "BYTE") for value in range(256)]
FIRST_PIECE = len(CONTROL_ROWS) + len(BYTE_ROWS)


def rows_with(pieces: dict[str, float]) -> list[Row]:
    """Control rows, byte rows, and from id FIRST_PIECE on the given pieces with their scores."""
    return CONTROL_ROWS + BYTE_ROWS + [(text, score, "NORMAL") for text, score in pieces.items()]


def spelled(tokenizer: Plamo2Tokenizer, text: str) -> list[str]:
    return [tokenizer.rows[i][0] for i in tokenizer.encode(text)]


# --- golden: computed by the makers' tokenizer -----------------------------------------------


def test_golden_has_all_its_cases() -> None:
    assert (len(EXPECTED["encode"]), len(EXPECTED["decode"])) == (64, 10)


@pytest.mark.parametrize("case", EXPECTED["encode"], ids=lambda case: ascii(case["text"][:30]))
def test_encodes_like_the_makers(case: dict[str, Any]) -> None:
    assert TOKENIZER.encode(case["text"], add_bos=False) == case["core_ids"] == case["ids"]
    assert TOKENIZER.encode(case["text"], add_bos=True) == case["ids_with_special"]
    assert TOKENIZER.encode(case["text"]) == case["ids_with_special"]  # add_bos_token is true


@pytest.mark.parametrize("case", EXPECTED["encode"] + EXPECTED["decode"])
def test_decodes_like_the_makers(case: dict[str, Any]) -> None:
    assert TOKENIZER.decode(case["ids"]) == case["decode"] == case["decode_nospace"]
    assert TOKENIZER.decode(case["ids"], skip_special_tokens=True) == case["decode_skip"]


def test_golden_special_ids_and_bos_default() -> None:
    ids = (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert ids == (EXPECTED["bos_id"], EXPECTED["eos_id"])
    ids = (TOKENIZER.pad_token_id, TOKENIZER.unk_token_id)
    assert ids == (EXPECTED["pad_id"], EXPECTED["unk_id"])
    assert TOKENIZER.add_bos == EXPECTED["add_bos"]
    assert TOKENIZER.special_ids == {0, 1, 2, 3}


# --- the cheapest segmentation -----------------------------------------------------------------


def test_worked_example_of_the_docstring() -> None:
    tokenizer = Plamo2Tokenizer(rows_with({"a": -3, "b": -3, "ab": -6, "c": -4}))
    assert spelled(tokenizer, "abcx") == ["ab", "c", "<0x78>"]


def test_among_equal_costs_the_first_piece_is_longest() -> None:
    tokenizer = Plamo2Tokenizer(rows_with({"a": -1, "ab": -2, "bc": -2, "b": -1, "c": -1}))
    assert spelled(tokenizer, "abc") == ["ab", "c"]
    assert spelled(tokenizer, "cabc") == ["c", "ab", "c"]


def test_cost_is_rounded_half_to_even_from_a_double() -> None:
    # -10.12345 * 1e4 is -101234.5 exactly, which rounds to the even 101234; 3 + 7.1234 is as cheap.
    assert -10.12345 * 1e4 == -101234.5
    tie = {"X": -3, "Y": -7.1234, "XY": -10.12345}
    assert spelled(Plamo2Tokenizer(rows_with(tie)), "XY") == ["XY"]
    cheaper_parts = tie | {"Y": -7.1233}
    assert spelled(Plamo2Tokenizer(rows_with(cheaper_parts)), "XY") == ["X", "Y"]
    rounded_up = {"X": -3, "Y": -4, "XY": -7.00006}  # 70001, not 70000
    assert spelled(Plamo2Tokenizer(rows_with(rounded_up)), "XY") == ["X", "Y"]


def test_of_rows_with_the_same_text_the_last_one_counts() -> None:
    rows = [*rows_with({"a": -1, "b": -1, "ab": -9}), ("ab", -1.5, "NORMAL")]
    assert Plamo2Tokenizer(rows).encode("ab") == [FIRST_PIECE + 3]
    rows = [*rows_with({"a": -1, "b": -1, "ab": -1.5}), ("ab", -9.0, "NORMAL")]
    assert Plamo2Tokenizer(rows).encode("ab") == [FIRST_PIECE, FIRST_PIECE + 1]


def test_byte_rows_are_no_pieces_but_control_rows_are() -> None:
    tokenizer = Plamo2Tokenizer(rows_with({"a": -1}))
    assert spelled(tokenizer, "<0x61>") == [
        "<0x3C>",
        "<0x30>",
        "<0x78>",
        "<0x36>",
        "<0x31>",
        "<0x3E>",
    ]
    assert tokenizer.encode("a<|plamo:op|>a") == [FIRST_PIECE, 4, FIRST_PIECE]
    assert tokenizer.id_of("<0x61>") is None


Cut = tuple[float, list[tuple[int, bool]], list[int]]


def brute_force(text: str, rows: list[Row]) -> list[int]:
    """Every way to cut `text`; the least of (cost, longest first, pieces before bytes)."""
    ids = {row[0]: i for i, row in enumerate(rows) if row[2] != "BYTE"}

    def all_cuts(rest: str) -> list[Cut]:
        if not rest:
            return [(0, [], [])]
        steps: list[Cut] = [
            (-round(rows[i][1] * 1e4), [(-len(piece), False)], [i])
            for piece, i in ids.items()
            if rest.startswith(piece)
        ]
        byte_ids = [len(CONTROL_ROWS) + value for value in rest[0].encode()]
        steps.append((10_000_000, [(-1, True)], byte_ids))
        return [
            (cost + later_cost, key + later_key, found + later)
            for cost, key, found in steps
            for later_cost, later_key, later in all_cuts(rest[-key[0][0] :])
        ]

    return min(all_cuts(text))[2]


PIECES = st.dictionaries(
    st.text(alphabet="abあ", min_size=1, max_size=4),
    # Few values, so that ties are frequent; beyond -1000 bytes are cheaper than the piece.
    st.sampled_from([0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -150.0, -1500.0]),
    max_size=10,
)


@settings(deadline=None, max_examples=300)
@given(pieces=PIECES, text=st.text(alphabet="abあé", max_size=6))
def test_agrees_with_every_possible_segmentation(pieces: dict[str, float], text: str) -> None:
    rows = rows_with(pieces)
    assert Plamo2Tokenizer(rows).encode(text) == brute_force(text, rows)


class CountingDict(dict[str, int]):
    """A dict that counts its lookups: the steps of the algorithm."""

    lookups = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.lookups += 1
        return super().get(key, default)


def lookups_for(text: str, longest: int) -> int:
    """Steps for `text` with the pieces a, aa, … of up to `longest`, and one that never ends."""
    pieces = CountingDict({"a" * k: k for k in range(1, longest + 1)})
    pieces |= {
        ("b" * k): (longest + 1 if k == longest else NO_PIECE) for k in range(1, longest + 1)
    }
    cheapest_pieces(text, pieces, [0, *range(1, longest + 2)])
    return pieces.lookups


@pytest.mark.parametrize("unit", ["a", "b", " ", "界", "ab", "aab", "🙂"])
def test_steps_are_linear_on_repetitive_text(unit: str) -> None:
    longest = 12
    once, twice, thrice = (lookups_for(unit * (300 * k), longest) for k in (1, 2, 3))
    assert twice - once == thrice - twice  # each further part costs the same
    assert once <= (longest + 1) * len(unit * 300)


def test_text_without_any_match_takes_one_step_a_character() -> None:
    assert lookups_for("z" * 1000, longest=50) == 1000


# --- losslessness --------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab日本京都 \n\r\t<|plamo:bs>\ufeff\u2028\u0301🙂\x00"))
def test_any_unicode_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text, add_bos=False)
    assert TOKENIZER.decode(ids) == text
    assert b"".join(TOKENIZER.token_bytes(i) for i in ids) == text.encode()


def test_lone_surrogates_are_refused_with_their_place() -> None:
    with pytest.raises(TokenizerError, match=r"surrogate '\\ud83d' at character 2"):
        TOKENIZER.encode("ab\ud83d")
    assert issubclass(TokenizerError, PlamoRefError)
    assert issubclass(TokenizerError, ValueError)


# --- special tokens and odd ids ------------------------------------------------------------------


def test_skip_drops_the_named_tokens_and_keeps_other_control_rows() -> None:
    tokenizer = Plamo2Tokenizer(rows_with({"a": -1}), eos_token="<|plamo:bos|>")
    assert tokenizer.special_ids == {0, 1, 3}  # the end is spelled as the beginning
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 1
    assert tokenizer.decode([1, 2, 4], skip_special_tokens=True) == "<|plamo:eos|><|plamo:op|>"
    assert tokenizer.control_ids == {0, 1, 2, 3, 4}


def test_reserved_rows_count_as_control_whatever_their_type() -> None:
    reserved = TOKENIZER.id_of("<|plamo:reserved:0x1F|>")
    assert reserved == 31
    assert TOKENIZER.rows[reserved][2] == "NORMAL"
    assert reserved in TOKENIZER.control_ids - TOKENIZER.special_ids


def test_bos_is_added_only_when_asked_and_there_is_one() -> None:
    tokenizer = Plamo2Tokenizer(rows_with({"a": -1}))
    assert tokenizer.encode("a") == [FIRST_PIECE]
    assert tokenizer.encode("a", add_bos=True) == [1, FIRST_PIECE]
    without = Plamo2Tokenizer(rows_with({"a": -1}), bos_token=None)
    assert without.bos_token_id is None
    with pytest.raises(TokenizerError, match="no bos_token"):
        without.encode("a", add_bos=True)


def test_special_tokens_without_a_row_have_no_id() -> None:
    tokenizer = Plamo2Tokenizer([("a", -1.0, "NORMAL"), *BYTE_ROWS])
    assert tokenizer.bos_token_id is None
    assert tokenizer.special_ids == frozenset()
    assert tokenizer.id_of("a") == 0  # id 0 is an id like any other


def test_ids_of_padded_vocabulary_rows_have_no_text() -> None:
    beyond = TOKENIZER.vocab_size
    assert TOKENIZER.token_bytes(beyond) == b""
    assert TOKENIZER.decode([97, beyond, 10**9, 98]) == "ab"
    assert TOKENIZER.decode(np.array([97, beyond])) == "a"


def test_negative_ids_are_refused() -> None:
    for call in (TOKENIZER.token_bytes, IncrementalDetokenizer(TOKENIZER).push):
        with pytest.raises(TokenizerError, match="-1 is negative"):
            call(-1)
    with pytest.raises(TokenizerError, match="-1 is negative"):
        TOKENIZER.decode([97, -1])


# --- streaming -----------------------------------------------------------------------------------

FIRST_BYTE_ID = TOKENIZER.encode("\x00", add_bos=False)[0]
BYTE_IDS = st.integers(FIRST_BYTE_ID, FIRST_BYTE_ID + 255)
CHARACTER_IDS = st.characters(codec="utf-8").map(
    lambda character: [FIRST_BYTE_ID + value for value in character.encode()]
)
PART = st.lists(st.integers(0, TOKENIZER.vocab_size + 5), max_size=4) | CHARACTER_IDS
PARTS = st.lists(PART | st.lists(BYTE_IDS, max_size=4), max_size=12)
IDS = PARTS.map(lambda parts: [token_id for part in parts for token_id in part])


@settings(deadline=None, max_examples=400)
@given(ids=IDS, skip=st.booleans())
def test_streamed_text_is_the_decoded_text(ids: list[int], skip: bool) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER, skip_special_tokens=skip)
    shown = ""
    for count, token_id in enumerate(ids, 1):
        shown += detokenizer.push(token_id)
        # What waits is one unfinished character. (The first two bytes of an encoded surrogate wait
        # for the third, too; being invalid they count as two.)
        so_far = TOKENIZER.decode(ids[:count], skip)
        assert so_far in (shown, shown + "\ufffd", shown + "\ufffd\ufffd")
    assert shown + detokenizer.finish() == TOKENIZER.decode(ids, skip)


def test_a_character_appears_with_its_last_byte() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert [detokenizer.push(FIRST_BYTE_ID + v) for v in "🙂".encode()] == ["", "", "", "🙂"]
    assert detokenizer.finish() == ""


def test_bytes_of_a_surrogate_become_replacement_characters() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    ids = [FIRST_BYTE_ID + value for value in (0xED, 0xA0, 0x80)]
    assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == "\ufffd" * 3


def test_an_unfinished_character_becomes_a_replacement_character() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert detokenizer.push(FIRST_BYTE_ID + 0xE3) == ""
    assert detokenizer.push(97) == "\ufffda"
    assert detokenizer.push(FIRST_BYTE_ID + 0xE3) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""


def test_specials_are_skipped_by_default_even_inside_a_character() -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    first, *others = [FIRST_BYTE_ID + v for v in "あ".encode()]
    assert [detokenizer.push(i) for i in (1, first, 2, *others)] == ["", "", "", "", "あ"]


# --- files ---------------------------------------------------------------------------------------


def write_rows(folder: Path, rows: list[Any]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "tokenizer.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_saved_golden_folder_is_the_golden_folder(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "new" / "folder")
    for name in ("tokenizer.jsonl", "tokenizer_config.json"):
        saved = (tmp_path / "new" / "folder" / name).read_bytes()
        assert saved.rstrip(b"\n") == (GOLDEN / name).read_bytes().rstrip(b"\n"), name
    again = Plamo2Tokenizer.from_folder(tmp_path / "new" / "folder")
    assert vars(again) == {k: v for k, v in vars(TOKENIZER).items() if k != "control_ids"}


def test_saved_special_tokens_map_is_that_of_a_published_model(tmp_path: Path) -> None:
    # PLaMo 2 Translate: the end of text is its beginning. The digest is of its published file.
    Plamo2Tokenizer(rows_with({}), eos_token="<|plamo:bos|>").save(tmp_path)
    digest = hashlib.sha256((tmp_path / "special_tokens_map.json").read_bytes()).hexdigest()
    assert digest == "1004b03ad5c184693765d25d8d682e831727b43b84e321fc9dc14d9ef3d1466a"
    assert Plamo2Tokenizer.from_folder(tmp_path).eos_token_id == 1


@settings(deadline=None, max_examples=30)
@given(
    pieces=st.dictionaries(st.text(min_size=1), st.floats(-1e6, 1e6), max_size=8),
    add_bos=st.booleans(),
    pad=st.none() | st.just("<|plamo:op|>"),
)
def test_save_and_load_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: dict[str, float],
    add_bos: bool,
    pad: str | None,
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = Plamo2Tokenizer(rows_with(pieces), add_bos=add_bos, pad_token=pad)
    tokenizer.save(folder)
    assert vars(Plamo2Tokenizer.from_folder(folder)) == vars(tokenizer)


def test_only_the_rows_are_needed_and_further_columns_are_ignored(tmp_path: Path) -> None:
    rows = [[*row, "more", 1] for row in rows_with({"a": -1, "\u2028\x85": -2})]
    tokenizer = Plamo2Tokenizer.from_folder(write_rows(tmp_path, rows))
    assert tokenizer.rows == tuple(rows_with({"a": -1, "\u2028\x85": -2}))
    assert (tokenizer.add_bos, tokenizer.bos_token_id, tokenizer.eos_token_id) == (False, 1, 2)


def test_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    content = (GOLDEN / "tokenizer.jsonl").read_bytes()
    (tmp_path / "tokenizer.jsonl").write_bytes(content.replace(b"\n", b"\r\n"))
    assert Plamo2Tokenizer.from_folder(tmp_path).rows == TOKENIZER.rows


def test_the_config_outranks_the_map_only_with_its_added_tokens(tmp_path: Path) -> None:
    write_rows(tmp_path, rows_with({}))
    config: dict[str, Any] = {"eos_token": {"content": "<|plamo:op|>"}, "pad_token": None}
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|plamo:bos|>"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Plamo2Tokenizer.from_folder(tmp_path).eos_token_id == 1
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"added_tokens_decoder": {}})
    )
    tokenizer = Plamo2Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (4, None)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", "''"),
        ("hello", "'hello'"),
        ('["a", -1.0, "NORMAL"', '"NORMAL"'),
        ('{"a": 1}', "{'a': 1}"),
        ('"abc"', "'abc'"),
        ("[]", r"found \[\]"),
        ('["a"]', r"\['a'\]"),
        ('["a", -1.0]', r"\['a', -1.0\]"),
        ('["", -1.0, "NORMAL"]', "text ''"),
        ('[7, -1.0, "NORMAL"]', "text 7"),
        (r'["\ud800", -1.0, "NORMAL"]', r"a lone surrogate, .* '\\ud800'"),
        ('["a", null, "NORMAL"]', "score None"),
        ('["a", "-1.0", "NORMAL"]', "score '-1.0'"),
        ('["a", true, "NORMAL"]', "score True"),
        ('["a", NaN, "NORMAL"]', "NaN is not JSON"),
        ('["a", -Infinity, "NORMAL"]', "-Infinity is not JSON"),
        ('["a", -1e307, "NORMAL"]', "not a finite number"),
        ('["a", 1' + "0" * 400 + ', "NORMAL"]', "an integer of 401 digits"),
        ('["a", -1.0, 3]', "type 3"),
        ('["<0xZZ>", 0.0, "BYTE"]', "<0xZZ>"),
        ('["a", 0.0, "BYTE"]', "not <0xHH>"),
        ("[" * 100_000, r"\[\[\["),
    ],
)
def test_a_bad_line_is_named_with_what_was_found(tmp_path: Path, line: str, found: str) -> None:
    lines = [json.dumps(row) for row in rows_with({"a": -1})]
    lines[2] = line
    path = tmp_path / "tokenizer.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match=found) as caught:
        Plamo2Tokenizer.from_folder(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 3 (id 2): expected ")
    assert "[text, score, type]" in message
    assert len(message) < 700


def test_rows_given_in_code_are_checked_alike() -> None:
    with pytest.raises(TokenizerError, match=r"line 1 \(id 0\): .* score 'x'"):
        Plamo2Tokenizer([("a", "x", "NORMAL")])
    with pytest.raises(TokenizerError, match="not a finite number"):
        Plamo2Tokenizer([("a", math.nan, "NORMAL")])


def test_missing_byte_rows_are_counted_and_named(tmp_path: Path) -> None:
    rows = [row for row in rows_with({"a": -1}) if row[0] not in ("<0x41>", "<0xFF>")]
    with pytest.raises(TokenizerError, match=r"2 of the 256 bytes .* first is <0x41>") as caught:
        Plamo2Tokenizer.from_folder(write_rows(tmp_path, rows))
    assert str(tmp_path / "tokenizer.jsonl") in str(caught.value)
    with pytest.raises(TokenizerError, match="first is <0x00>"):
        Plamo2Tokenizer(BYTE_ROWS)  # as with the makers, id 0 cannot be a byte


def test_missing_and_undecodable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.jsonl: no such file"):
        Plamo2Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.jsonl").write_bytes(b'["a", 0.0, "NORMAL"]\n["\xff", 0.0, "NORMAL"]\n')
    with pytest.raises(TokenizerError, match=r"tokenizer\.jsonl: line 2: not UTF-8"):
        Plamo2Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.jsonl").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"tokenizer\.jsonl: line 1 .*found ''"):
        Plamo2Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[]", "expected a JSON object, found list"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("special_tokens_map.json", "nope", "not valid JSON"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', "add_bos_token is 'yes'"),
        ("tokenizer_config.json", '{"bos_token": 1}', "bos_token is 1"),
        ("special_tokens_map.json", '{"bos_token": {}}', "bos_token is {}"),
        ("special_tokens_map.json", '{"eos_token": "</s>"}', "eos_token is '</s>', which no row"),
    ],
)
def test_bad_companion_files_are_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    write_rows(tmp_path, rows_with({}))
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        Plamo2Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
