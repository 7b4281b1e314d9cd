"""Text to token ids and back, from a checkpoint's tokenizer.jsonl.

Invariant: `decode(encode(text)) == text` for every Unicode text, and the ids are those of the
cheapest segmentation: no normalisation, no added spaces, no pre-tokenisation.
Built in notebooks/04b_logits_to_text.ipynb.

How a text is cut. Row i of the file is `[text, score, type]` and describes token i. A piece costs
`-round(score * 10_000)`; a code point may also be spelled as its UTF-8 bytes (the BYTE rows
`<0x00>` to `<0xFF>`), for 10 million. Of all ways to cut the text into pieces the one with the
lowest sum wins, and among equals the one whose first piece is longest, then its second, and so on.

Worked example: pieces a (score -3), b (-3), ab (-6), c (-4); the text "abcx". `total[i]` is the
cheapest cost of `text[i:]`, found from the end, because what follows a piece does not depend on
what came before it:

    i  starts here  choices: cost + total after the piece            total[i]    choice
    4               nothing left                                            0
    3  x            bytes 10_000_000 + total[4]                    10_000_000    bytes of x
    2  cx           c 40_000 + total[3]                            10_040_000    c
    1  bcx          b 30_000 + total[2]                            10_070_000    b
    0  abcx         a 30_000 + total[1], ab 60_000 + total[2]      10_100_000    ab (tie: longest)

Read forwards from 0 the choices are: ab, c, bytes of x. (Bytes compete at every row; only where
nothing else fits do they win.) The work at each start ends at the first string that begins no
piece, hence it is bounded by the longest piece, and the whole is linear in the text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

from plamo_ref.intake.tokenizer_files import (
    BYTE,
    SPECIAL_NAMES,
    SURROGATE,
    Row,
    TokenizerError,
    check_prefixes,
    checked_row,
    read_files,
    write_files,
)

__all__ = ["Plamo2Tokenizer", "Row", "TokenizerError", "cheapest_pieces"]

COST_PER_SCORE = 10_000  # costs are integers: equal sums are exactly equal
UNCOVERED_COST = 10_000_000  # of a code point spelled as bytes
NO_PIECE = -1
CONTROL_TEXT = re.compile(r"<\|plamo:.*\|>", re.DOTALL)


def cheapest_pieces(text: str, piece_of: Mapping[str, int], costs: Sequence[int]) -> list[int]:
    """For each start in `text`, the first token of the cheapest way to cut the rest of it.

    Args:
        text: any string, n code points.
        piece_of: every piece, and every string that begins one: its token id, or NO_PIECE.
        costs: cost of each token id.

    Returns:
        n token ids; NO_PIECE where the code point is best spelled as bytes.
    """
    n = len(text)
    lookup = piece_of.get
    total = [0] * (n + 1)
    choice = [NO_PIECE] * n
    for start in range(n - 1, -1, -1):
        best, best_piece = UNCOVERED_COST + total[start + 1], NO_PIECE
        for end in range(start + 1, n + 1):
            piece = lookup(text[start:end])
            if piece is None:  # no piece begins so
                break
            if piece >= 0:
                cost = costs[piece] + total[end]
                if cost <= best:  # "or equal": of equals the longest, which comes last, wins
                    best, best_piece = cost, piece
        total[start], choice[start] = best, best_piece
    return choice


class Plamo2Tokenizer:
    """The tokenizer of PLaMo 2, with the results of the makers' own `Plamo2Tokenizer`.

    Special tokens written in a text become their ids: there is no escaping. `add_eos_token` of a
    checkpoint is not applied (no PLaMo 2 sets it).

    Attributes:
        rows: the vocabulary; `rows[i]` is the text, score and type of token i.
        vocab_size: number of rows. A model's `config.vocab_size` may be larger (padding).
        add_bos: whether `encode` begins with `bos_token_id` when not told otherwise.
        special_tokens: texts of bos_token, eos_token, pad_token, unk_token; None: there is none.
        special_ids: the ids of these, which `skip_special_tokens` drops. As with the makers, other
            control rows such as `<|plamo:op|>` are not among them.
    """

    def __init__(
        self,
        rows: Iterable[Sequence[Any]],
        *,
        add_bos: bool = False,
        bos_token: str | None = "<|plamo:bos|>",
        eos_token: str | None = "<|plamo:eos|>",
        pad_token: str | None = "<|plamo:pad|>",
        unk_token: str | None = "<|plamo:unk|>",
    ) -> None:
        """Build from rows `(text, score, type)`; more columns are ignored.

        A special token whose text no row has gets the id None.

        Raises:
            TokenizerError: an impossible row, too many long ones, or a byte without its row.
        """
        self.rows: tuple[Row, ...] = tuple(checked_row(i, row) for i, row in enumerate(rows))
        check_prefixes(self.rows)
        self.vocab_size = len(self.rows)
        self.add_bos = add_bos
        self._costs = [-round(score * COST_PER_SCORE) for _, score, _ in self.rows]
        self._piece_of: dict[str, int] = {}  # also what begins a piece: NO_PIECE
        self._byte_ids = [0] * 256  # 0, as with the makers: not found yet
        self._bytes: list[bytes] = []
        for token_id, (text, _, kind) in enumerate(self.rows):
            if kind == BYTE:
                self._byte_ids[int(text[3:5], 16)] = token_id
                self._bytes.append(bytes.fromhex(text[3:5]))
            else:
                self._add_piece(token_id, text)
                self._bytes.append(text.encode())
        self._check_bytes()
        texts = (bos_token, eos_token, pad_token, unk_token)
        ids = [None if text is None else self.id_of(text) for text in texts]
        self.special_tokens = dict(zip(SPECIAL_NAMES, texts, strict=True))
        self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id = ids
        self.special_ids: frozenset[int] = frozenset(i for i in ids if i is not None)

    def _add_piece(self, token_id: int, text: str) -> None:
        """Enter a piece and all that begins it. Of rows with the same text the last one counts."""
        for end in range(len(text) - 1, 0, -1):
            if text[:end] in self._piece_of:  # and hence all shorter ones
                break
            self._piece_of[text[:end]] = NO_PIECE
        self._piece_of[text] = token_id

    def _check_bytes(self) -> None:
        missing = [value for value in range(256) if self._byte_ids[value] == 0]
        if missing:
            raise TokenizerError(
                f"{len(missing)} of the 256 bytes have no BYTE row (id 0 does not count), the "
                f"first is <0x{missing[0]:02X}>; expected a row for each of <0x00> to <0xFF>"
            )

    def encode(self, text: str, add_bos: bool | None = None, *, specials: bool = True) -> list[int]:
        """Token ids of `text`. Takes time linear in its length.

        Args:
            text: any Unicode text; not changed in any way before it is cut.
            add_bos: begin with `bos_token_id`; None: as the checkpoint's add_bos_token says. A
                text that spells the token out gets it twice, as with the makers.
            specials: False: a control token written in the text is text, and spelt by others.

        Raises:
            TokenizerError: `text` has a lone surrogate (half of a UTF-16 pair), which has no UTF-8.
        """
        ids: list[int] = []
        if self.add_bos if add_bos is None else add_bos:
            if self.bos_token_id is None:
                raise TokenizerError("add_bos: this tokenizer has no bos_token")
            ids.append(self.bos_token_id)
        surrogate = SURROGATE.search(text)
        if surrogate is not None:
            raise TokenizerError(
                f"text has a lone surrogate {surrogate[0]!r} at character {surrogate.start()}, "
                "which is not Unicode text; replace it, with U+FFFD for example"
            )
        pieces = self._piece_of if specials else self._text_piece_of
        choice = cheapest_pieces(text, pieces, self._costs)
        start = 0
        while start < len(text):
            piece = choice[start]
            if piece == NO_PIECE:
                ids += [self._byte_ids[value] for value in text[start].encode()]
                start += 1
            else:
                ids.append(piece)
                start += len(self.rows[piece][0])
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`: their bytes, joined, read as UTF-8; U+FFFD for what is not UTF-8.

        Raises:
            TokenizerError: a negative id.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset()
        numbers = [index(token_id) for token_id in ids]
        known = numbers and 0 <= min(numbers) <= max(numbers) < self.vocab_size
        bytes_of = self._bytes.__getitem__ if known else self.token_bytes
        joined = b"".join([bytes_of(i) for i in numbers if i not in skipped])
        return joined.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a BYTE row stands for one, perhaps half a character.

        An id of `vocab_size` or more has no text, b"": a model's vocabulary is padded and nothing
        but its training keeps it from choosing such a row. A negative id is a bug of the caller.

        Raises:
            TokenizerError: `token_id` is negative.
        """
        if token_id < 0:
            raise TokenizerError(f"token id {token_id} is negative; ids start at 0")
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def id_of(self, text: str) -> int | None:
        """Id of the piece spelled `text` (BYTE rows are not pieces), or None."""
        token_id = self._piece_of.get(text, NO_PIECE)
        return None if token_id == NO_PIECE else token_id

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that stand for no text of a user: special, CONTROL, UNKNOWN and `<|plamo:…|>` rows.

        A grammar must not read these as text, though `decode` spells them out.
        """
        return self.special_ids | {
            i
            for i, (text, _, kind) in enumerate(self.rows)
            if kind in ("CONTROL", "UNKNOWN") or CONTROL_TEXT.fullmatch(text)
        }

    @cached_property
    def _text_piece_of(self) -> dict[str, int]:
        """As `_piece_of`, without the control tokens."""
        control = self.control_ids
        return {text: NO_PIECE if i in control else i for text, i in self._piece_of.items()}

    # --- files ----------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Plamo2Tokenizer":
        """Read tokenizer.jsonl and, where present, tokenizer_config.json, special_tokens_map.json.

        Raises:
            TokenizerError: a file is missing or malformed; the message names it and the line.
        """
        found = read_files(Path(folder))
        try:
            tokenizer = cls(found.rows, add_bos=found.add_bos, **found.special_tokens)
        except TokenizerError as error:
            raise TokenizerError(f"{found.path}: {error}") from None
        for name, text in found.special_tokens.items():
            if text is not None and tokenizer.id_of(text) is None:
                message = f"{folder}: {name} is {text!r}, which no row of {found.path} has"
                raise TokenizerError(message)
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write the three files in the makers' format (their further columns are not kept)."""
        special = {i: self.rows[i][0] for i in sorted(self.special_ids)}
        write_files(Path(folder), self.rows, self.add_bos, self.special_tokens, special)
