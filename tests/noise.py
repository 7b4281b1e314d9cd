"""A checkpoint folder of noise with a real, small vocabulary: engines whose text is never trivial.

Invariant tested: none here. A random model likes every token about equally, so masks, penalties
and stop strings have work to do at every token.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from plamo_ref import LLM
from plamo_ref.proof.lab import lab_config, random_tensors
from plamo_ref.reference import Plamo2Reference
from plamo_ref.text.tokenizer import Plamo2Tokenizer, Row
from plamo_ref.weights.save import save

SPECIAL = ("unk", "bos", "eos", "pad", "op")
BOS, EOS, PAD, OP = 1, 2, 3, 4
PIECES = (
    *'abcdefghijklmnopqrstuvwxyz0123456789 .,:;+*-()[]{}"\\\n',
    *"あいうえおかきくけこさしすせそアイウ東京都大阪",
    *("東京", "京都", "です", "あい", "いう", "うえ", 'a"', '{"', '":', '",', '"}', "ab", "bc"),
    *("12", "123", "true", "false", "null", "cat", "category", "the", "e ", "stop", "top", "st"),
)
MADE = TemporaryDirectory()


def noise_rows() -> list[Row]:
    rows: list[Row] = [(f"<|plamo:{name}|>", 0.0, "CONTROL") for name in SPECIAL]
    rows += [(f"<0x{value:02X}>", 0.0, "BYTE") for value in range(256)]
    return rows + [(piece, -3.0 - len(piece) / 8, "NORMAL") for piece in PIECES]


@cache
def noise_folder(padding: int = 7) -> Path:
    """The model's vocabulary has `padding` ids beyond the tokenizer's."""
    rows = noise_rows()
    config = lab_config(
        vocab_size=len(rows) + padding, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD
    )
    folder = Path(MADE.name) / f"noise-{padding}"
    save(folder, config, random_tensors(config, torch.float32))
    Plamo2Tokenizer(rows, add_bos=True).save(folder)
    return folder


@cache
def noise_reference() -> Plamo2Reference:
    return Plamo2Reference.from_pretrained(noise_folder(), torch.float64).requires_grad_(False)


def noise_llm(**engine: object) -> LLM:
    settings = {"dtype": "float64", "device": "cpu", "memory_bytes": 1 << 20} | engine
    return LLM(noise_folder(), **settings)  # type: ignore[arg-type]


# Schedulers, chunks, and a memory in which requests push each other out.
ENGINES = {
    "v1": {},
    "v1, 5 tokens a step": {"max_num_batched_tokens": 5, "block_size": 3},
    "v1, hardly any memory": {"memory_bytes": 50_000, "block_size": 2, "record": True},
    "v0": {"scheduler": "v0"},
    "v0, chunks of 4, hardly any memory": {
        "scheduler": "v0",
        "chunk_size": 4,
        "memory_bytes": 50_000,
        "block_size": 2,
        "record": True,
    },
}


def assert_clean(llm: LLM) -> None:
    """Nothing of any request is left."""
    core = llm.core
    core.cache.check_integrity()
    assert not core.has_work
    assert not core.queues.running
    assert not core.queues.waiting
    assert not core.cache.holdings
    assert not llm._callers.completions


def preemptions(llm: LLM) -> int:
    return sum(len(record.preempted) for record in llm.records)
