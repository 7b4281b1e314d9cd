"""The training command: data that never leaks, runs that repeat exactly and survive a stop."""

import json
import random

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from plamo_ref.reference import Plamo2Reference
from plamo_ref.text.tokenizer import Plamo2Tokenizer
from plamo_ref.weights.checkpoint import Checkpoint
from tools.tiny.corpus import Batches, passages, split, unindented
from tools.tiny.run import Recipe, Run, bits_per_byte
from tools.tiny.train import init_weights, main, tiny_config
from tools.tiny.vocabulary import learn_rows

WORDS = [
    "猫",
    "である",
    "吾輩は",
    "名前",
    "まだ無い",
    "。",
    "the",
    " cat",
    " sat",
    ",",
    " on",
    "坊っちゃん",
]


def some_text(seed: int, paragraphs: int = 120) -> str:
    rng = random.Random(seed)
    return "\n".join("".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(paragraphs))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(some_text(1), encoding="utf-8")
    return path


def test_passages_are_the_text_cut_at_paragraph_ends():
    text = some_text(2)
    found = passages(text, random.Random(0))
    assert "".join(found) == text
    assert all(p.endswith("\n") for p in found[:-1])
    assert len(found) > 3


def test_held_out_passages_are_not_trained_on():
    data = split([some_text(3), some_text(4)], held_out_share=0.3, seed=7)
    assert data.held_out
    assert not set(data.held_out) & set(data.train)
    assert split([some_text(3), some_text(4)], held_out_share=0.3, seed=7) == data


def test_a_batch_depends_on_its_step_alone_and_targets_are_the_next_tokens():
    encoded = [[1, *range(10, 10 + n), 2] for n in (5, 9, 30, 12, 3, 21)]
    batches = Batches(encoded, rows=2, length=8, seed=5)
    inputs, targets = batches[batches.steps_per_epoch + 1]
    later = Batches(encoded, rows=2, length=8, seed=5)
    later[0]
    again, _ = later[batches.steps_per_epoch + 1]
    assert torch.equal(inputs, again)
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])


def test_an_epoch_shows_every_token_but_the_rest_of_the_last_batch_once():
    encoded = [[i] * (5 + i) for i in range(10)]
    batches = Batches(encoded, rows=2, length=4, seed=5)
    seen = torch.cat([batches[s][0].flatten() for s in range(batches.steps_per_epoch)])
    total = np.bincount(np.concatenate(encoded))
    assert len(seen) == batches.steps_per_epoch * 8
    assert (np.bincount(seen.numpy(), minlength=10) <= total).all()


def test_too_little_text_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"has 3 tokens; one batch needs 17"):
        Batches([[1, 2, 3]], rows=2, length=8, seed=0)


def test_learned_rows_encode_everything_and_ascii_sits_at_its_code():
    rows = learn_rows(some_text(5).splitlines(), 450)
    assert len(rows) <= 450
    tokenizer = Plamo2Tokenizer(rows)
    assert tokenizer.encode("A~\n") == [65, 126, 10]
    assert tokenizer.decode(tokenizer.encode("鯰 and 🐈\x07")) == "鯰 and 🐈\x07"
    assert rows[1][0] == "<|plamo:bos|>"
    assert len(tokenizer.encode("吾輩は")) == 1


def test_bits_per_byte_of_a_uniform_model_is_the_size_of_the_vocabulary():
    def uniform(ids):
        return torch.zeros(len(ids), 256)

    text = "abcdef"
    ids = [0, *text.encode()]
    assert bits_per_byte(uniform, [ids], [text]) == pytest.approx(8.0)


def test_initial_step_sizes_and_decays_are_in_their_ranges():
    model = Plamo2Reference(tiny_config(512))
    init_weights(model, 3)
    for name, p in model.named_parameters():
        if name.endswith("dt_bias"):
            step = torch.nn.functional.softplus(p)
            assert (step > 0.9e-3).all()
            assert (step < 1.1e-1).all()
        if name.endswith("A_log"):
            assert (p.exp() >= 1).all()
            assert (p.exp() <= 16).all()


def train(text_file, out, steps, *more):
    arguments = [str(text_file), "--out", str(out), "--steps", str(steps), "--every", "2"]
    arguments += ["--batch", "2", "--length", "32", "--vocab-size", "430", "--float32", *more]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def trained(text_file, tmp_path_factory):
    return train(text_file, tmp_path_factory.mktemp("whole"), 4)


def test_a_run_writes_a_genuine_checkpoint_with_card_record_and_curve(trained):
    checkpoint = Checkpoint.open(trained)
    assert checkpoint.config == tiny_config(430)
    assert {checkpoint.dtype(n) for n in checkpoint.names} == {torch.bfloat16}
    record = json.loads((trained / "training.json").read_text())
    card = (trained / "README.md").read_text()
    assert f"{record['held_out_bits_per_byte'][-1][1]:.3f} bits per byte" in card
    assert record["recipe"]["seed"] == Recipe.seed
    assert (trained / "loss.png").stat().st_size > 1000


def test_a_run_that_stops_and_goes_on_ends_where_an_unbroken_one_ends(
    trained, text_file, tmp_path, monkeypatch
):
    whole, steps = Run.train_step, []

    def stop_at_third(self):
        steps.append(self.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Run, "train_step", stop_at_third)
    arguments = [str(text_file), "--out", str(tmp_path), "--steps", "4", "--every", "2"]
    arguments += ["--batch", "2", "--length", "32", "--vocab-size", "430", "--float32"]
    assert CliRunner().invoke(main, arguments).exit_code != 0
    monkeypatch.undo()
    train(text_file, tmp_path, 4)
    assert steps == [0, 1, 2, 3]
    first, second = Checkpoint.open(trained), Checkpoint.open(tmp_path)
    for name in first.names:
        assert torch.equal(first.read(name), second.read(name)), name


def test_training_lowers_the_loss(text_file, tmp_path):
    record = json.loads(
        (train(text_file, tmp_path, 12, "--learning-rate", "0.01") / "training.json").read_text()
    )
    assert record["losses"][-1] < record["losses"][0] - 0.5


def test_a_share_of_passages_loses_the_white_space_in_front():
    texts = [f"\u3000{i}" for i in range(200)]
    bare = unindented(texts, 0.5, seed=1)
    assert [t.strip() for t in bare] == [t.strip() for t in texts]
    assert 60 < sum(not t.startswith("\u3000") for t in bare) < 140
    assert unindented(texts, 0.0, seed=1) == texts


def test_a_run_can_go_on_from_a_checkpoint_and_the_card_tells_of_both(trained, text_file, tmp_path):
    train(text_file, tmp_path, 2, "--init", str(trained))
    card = (tmp_path / "README.md").read_text()
    assert "| run 1 | 4 steps" in card
    assert "| run 2 | 2 steps" in card
    assert (tmp_path / "tokenizer.jsonl").read_bytes() == (trained / "tokenizer.jsonl").read_bytes()
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["before"] == json.loads((trained / "training.json").read_text())
