"""Learn the rows of a tokenizer.jsonl from text: special rows, ASCII, bytes, then unigram pieces.

Invariant: every text can be encoded (all 256 byte rows exist) and ASCII characters sit at their
own code, as in PLaMo 2's published vocabularies.
"""

import io
from collections.abc import Iterable

import sentencepiece as spm

Row = tuple[str, float, str]

NAMED = {0: "unk", 1: "bos", 2: "eos", 3: "pad", 4: "op"}
LAST_CONTROL = 6
NUM_ASCII = 128
SPACE = "\u2581"  # how the learner writes a space inside a piece


def learn_rows(lines: Iterable[str], vocab_size: int) -> list[Row]:
    """Learn `vocab_size` rows (text, score, type) with the unigram algorithm.

    `lines` are paragraphs without line breaks. Scores are natural-log probabilities.
    """
    fixed = NUM_ASCII + 256
    pieces = _learn_pieces(lines, vocab_size - fixed)
    floor = min(pieces.values()) - 1.0  # a character never seen costs a little more than any piece
    rows = [_low_row(code, pieces, floor) for code in range(NUM_ASCII)]
    rows += [(f"<0x{byte:02X}>", 0.0, "BYTE") for byte in range(256)]
    rest = sorted((p for p in pieces if not _has_own_slot(p)), key=lambda p: (-pieces[p], p))
    rows += [(piece, round(pieces[piece], 4), "NORMAL") for piece in rest]
    return rows[:vocab_size]


def _learn_pieces(lines: Iterable[str], count: int) -> dict[str, float]:
    """Pieces and their log probabilities, most of them longer than one character."""
    # The learner's three control pieces and the ASCII characters, which have their own slots,
    # come on top of `count`.
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=count + 100,
        hard_vocab_limit=False,
        character_coverage=0.995,
        max_sentence_length=100_000,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,  # more would make the result depend on timing
        minloglevel=2,
    )
    learned = spm.SentencePieceProcessor(model_proto=model.getvalue())
    return {
        learned.id_to_piece(i).replace(SPACE, " "): learned.get_score(i)
        for i in range(learned.get_piece_size())
        if not learned.is_control(i) and not learned.is_unknown(i)
    }


def _has_own_slot(piece: str) -> bool:
    return len(piece) == 1 and ord(piece) < NUM_ASCII


def _low_row(code: int, pieces: dict[str, float], floor: float) -> Row:
    """Row `code` < 128: a special, a printable or white-space ASCII character, or reserved."""
    if code in NAMED:
        return f"<|plamo:{NAMED[code]}|>", 0.0, "UNKNOWN" if code == 0 else "CONTROL"
    char = chr(code)
    if char in "\t\n\r" or 32 <= code < 127:
        return char, round(pieces.get(char, floor), 4), "NORMAL"
    kind = "CONTROL" if code <= LAST_CONTROL else "NORMAL"
    return f"<|plamo:reserved:0x{code:02X}|>", 0.0, kind
