"""Tokenizer and model side by side: rows against logits, and a model without a tokenizer.

Invariant tested: every id that the model can choose can be decoded, or nobody expects text.
"""

import json
import shutil
import time
import warnings
from pathlib import Path

import pytest

from plamo_ref import LLM, SamplingParams
from plamo_ref.intake.hub import find
from plamo_ref.intake.tokenizer_files import MAX_PIECE
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.sampling import GuidedParams
from plamo_ref.text.loading import load_tokenizer
from plamo_ref.text.tokenizer import Plamo2Tokenizer, TokenizerError

TINY = find("tiny")
GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model."""
    for path in TINY.iterdir():
        if path.suffix in (".json", ".jsonl"):
            shutil.copy(path, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(TINY / "model.safetensors")
    return tmp_path


def set_rows(folder: Path, count: int) -> None:
    """Cut rows off, or add some."""
    lines = (folder / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()
    lines += [json.dumps([f"more{i}", -1.0, "NORMAL"]) for i in range(count - len(lines))]
    (folder / "tokenizer.jsonl").write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")


def test_a_vocabulary_that_is_padded_needs_no_word(folder):
    set_rows(folder, 5120 - 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_tokenizer(folder, 5120).vocab_size == 5088


def test_a_row_without_a_logit_is_refused(folder):
    set_rows(folder, 5121)
    said = r"tokenizer\.jsonl has 5,121 rows, but config\.json a vocab_size of 5,120: it is another"
    with pytest.raises(TokenizerError, match=said):
        LLM(folder)
    with pytest.raises(TokenizerError, match=said):
        AsyncLLM(folder)


def test_a_tokenizer_that_is_much_too_small_is_said(folder):
    set_rows(folder, 2000)
    with pytest.warns(UserWarning, match=r"has 2,000 rows, but .* 5,120: is it this model's"):
        load_tokenizer(folder, 5120)


# --- without a tokenizer --------------------------------------------------------------------------


@pytest.fixture
def bare(folder: Path) -> Path:
    """… that has no tokenizer."""
    for name in ("tokenizer.jsonl", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


def test_token_ids_are_served_without_a_tokenizer(bare):
    ids = Plamo2Tokenizer.from_folder(TINY).encode("吾輩は")
    asked = SamplingParams(temperature=0, max_tokens=6, logprobs=1)
    (with_text,) = LLM(TINY, memory_bytes=8 << 20).generate(ids, asked, use_tqdm=False)
    llm = LLM(bare, memory_bytes=8 << 20)
    (output,) = llm.generate(ids, asked, use_tqdm=False)
    assert output.outputs[0].token_ids == with_text.outputs[0].token_ids
    assert output.outputs[0].finish_reason == with_text.outputs[0].finish_reason
    assert output.outputs[0].text == ""
    assert {o.decoded_token for place in output.outputs[0].logprobs for o in place.values()} == {""}
    pieces = list(llm.stream([ids], GREEDY))
    assert [p.token_id for p in pieces] == list(output.outputs[0].token_ids)
    assert {p.text for p in pieces} == {""}


def test_what_is_about_text_is_refused_by_name_without_a_tokenizer(bare):
    llm = LLM(bare, memory_bytes=8 << 20)
    cure = r"has no tokenizer\.jsonl: give prompts as token ids"
    with pytest.raises(TokenizerError, match=cure):
        llm.generate(["吾輩は", [1, 2]], GREEDY, use_tqdm=False)
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.jsonl: stop is about text"):
        llm.generate([1, 2], SamplingParams(stop=["。"]), use_tqdm=False)
    guided = SamplingParams(guided=GuidedParams(regex="a+"))
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.jsonl: guided is about text"):
        llm.generate([1, 2], guided, use_tqdm=False)
    assert not llm.core.has_work


# --- files ----------------------------------------------------------------------------------------


def test_a_row_of_five_megabytes_is_refused_and_costs_nothing(folder):
    lines = (folder / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()
    lines[5000] = json.dumps(["猫" * 1_700_000, -1.0, "NORMAL"], ensure_ascii=False)
    (folder / "tokenizer.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    started = time.perf_counter()
    said = r"tokenizer\.jsonl: line 5001 .*1,700,000 characters; at most 1,024"
    with pytest.raises(TokenizerError, match=said) as caught:
        Plamo2Tokenizer.from_folder(folder)
    assert time.perf_counter() - started < 60
    assert len(str(caught.value)) < 400


def test_many_long_rows_are_refused_before_they_take_gigabytes():
    rows = [(f"<0x{n:02X}>", 0.0, "BYTE") for n in range(256)]
    rows = [("-", 0.0, "NORMAL"), *rows]
    rows += [(f"{i:04}" + "x" * (MAX_PIECE - 4), 0.0, "NORMAL") for i in range(1000)]
    with pytest.raises(TokenizerError, match="too many long ones"):
        Plamo2Tokenizer(rows)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_companions_that_cannot_be_read_are_named(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(TokenizerError, match=f"{name}: expected a file, found a folder"):
        Plamo2Tokenizer.from_folder(folder)


def test_corners_of_json_in_rows_are_named_with_their_line(folder):
    lines = (folder / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()
    for row in (
        '["a", NaN, "NORMAL"]',
        f'["a", {"9" * 5000}, "NORMAL"]',
        '["a", -1, "NORMAL", {"x": 1, "x": 2}]',
        "[" * 100_000,
        '["a", -1e999, "NORMAL"]',
        '["\\ud800", -1, "NORMAL"]',
        '["a", true, "NORMAL"]',
    ):
        text = "\n".join([*lines[:7], row, *lines[8:]])
        (folder / "tokenizer.jsonl").write_text(text + "\n", encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"tokenizer\.jsonl: line 8 \(id 7\)") as caught:
            Plamo2Tokenizer.from_folder(folder)
        assert len(str(caught.value)) < 500
