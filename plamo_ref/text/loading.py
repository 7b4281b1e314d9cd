"""The tokenizer of a checkpoint, held against its model; or none, for those who bring token ids.

Invariant: whoever gets a tokenizer from here can decode every id that the model can choose.
"""

import warnings
from pathlib import Path

from plamo_ref.intake.json_files import is_there
from plamo_ref.intake.tokenizer_files import BYTE, ROWS_FILE
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer, TokenizerError

MAX_PADDING = 1024  # rows of a model's vocabulary without a text; translate has 32


class NoTokenizer(Plamo2Tokenizer):
    """Stands where a folder has no tokenizer: prompts come as ids, and outputs have no text."""

    def __init__(self, folder: Path) -> None:
        super().__init__([("-", 0.0, "NORMAL"), *((f"<0x{n:02X}>", 0.0, BYTE) for n in range(256))])
        self.folder, self._bytes = folder, [b""] * self.vocab_size

    def encode(self, text: str, add_bos: bool | None = None, *, specials: bool = True) -> list[int]:
        """There is no way to.

        Raises:
            TokenizerError: always.
        """
        raise TokenizerError(f"{self.lack}: give prompts as token ids")

    @property
    def lack(self) -> str:
        return f"{self.folder} has no {ROWS_FILE}"


def load_tokenizer(folder: Path, vocab_size: int) -> Plamo2Tokenizer:
    """The tokenizer of a model with so many logits; a `NoTokenizer` where there is no file of it.

    Raises:
        TokenizerError: its files are broken, or it has tokens that the model does not know.
    """
    if not is_there(folder / ROWS_FILE):
        return NoTokenizer(folder)
    tokenizer = Plamo2Tokenizer.from_folder(folder)
    check_vocabulary(tokenizer, folder, vocab_size)
    return tokenizer


def check_params(tokenizer: Plamo2Tokenizer, params: SamplingParams) -> None:
    """Refuse what is about text where there is none.

    Raises:
        TokenizerError: a stop string or a grammar, without a tokenizer.
    """
    if isinstance(tokenizer, NoTokenizer):
        for name, given in (("stop", params.stop), ("guided", params.guided)):
            if given:
                raise TokenizerError(f"{tokenizer.lack}: {name} is about text, and there is none")


def check_vocabulary(tokenizer: Plamo2Tokenizer, folder: Path, vocab_size: int) -> None:
    """Hold the number of rows against that of logits. A few rows fewer are padding.

    Warns of many fewer: such a tokenizer is hardly this model's.

    Raises:
        TokenizerError: there are more rows than logits.
    """
    rows = tokenizer.vocab_size
    told = f"{folder / ROWS_FILE} has {rows:,} rows, but config.json a vocab_size of {vocab_size:,}"
    if rows > vocab_size:
        raise TokenizerError(f"{told}: it is another model's tokenizer, or vocab_size is wrong")
    if vocab_size - rows > MAX_PADDING:
        warnings.warn(f"{told}: is it this model's tokenizer?", stacklevel=3)
