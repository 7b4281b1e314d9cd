"""What lessons 01, 02, 03 and 04b lend acts as the package does.

Invariant tested: whoever goes on with what is lent, goes on with the model.
"""

from pathlib import Path

import torch

from plamo_ref.budget import cost_at, decode_bytes, weight_bytes_per_step
from plamo_ref.config import Plamo2Config
from plamo_ref.reference.attention import Attention
from plamo_ref.reference.functions import rms_norm, rope, visible
from plamo_ref.reference.scan import scan_steps
from plamo_ref.sampling import SamplingParams
from plamo_ref.teaching.mechanisms import anatomy, logits_to_text, mamba_mixer, sliding_window
from plamo_ref.text.stream import TextStream
from plamo_ref.text.tokenizer import Plamo2Tokenizer


def test_lesson_01_keeps_and_moves_as_many_bytes_as_the_package_says():
    config = Plamo2Config(
        num_hidden_layers=16, hidden_size=12, hidden_size_per_head=4, num_attention_heads=6,
        num_key_value_heads=2, mamba_num_heads=5, mamba_step=4, full_attention_idx=(6,),
        attention_window_size=30,
    )  # fmt: skip
    for length in (1, 29, 30, 31, 500):
        for itemsize in (2, 4):
            kept = anatomy.request_bytes(config, length, itemsize)
            assert kept == cost_at(config, length, itemsize=itemsize, bandwidth=1e9).request_bytes
            moved = weight_bytes_per_step(config, itemsize) + kept + config.state_bytes(itemsize)
            assert moved == decode_bytes(config, length, itemsize)


def test_lesson_02_attends_as_the_models_layer_does():
    torch.manual_seed(2)
    config = Plamo2Config(
        num_hidden_layers=2, hidden_size=12, hidden_size_per_head=4, num_attention_heads=6,
        num_key_value_heads=2, attention_window_size=3,
    )  # fmt: skip
    layer, x = Attention(config, 1).double(), torch.randn(9, 12, dtype=torch.float64)
    parts = layer.qkv_proj(x).unflatten(-1, (-1, 4)).split((6, 2, 2), dim=1)
    positions, gain = torch.arange(9), torch.ones(4, dtype=torch.float64)
    q, k = (rope(rms_norm(part, gain, 1e-6), positions, config.theta(1)) for part in parts[:2])
    mask = sliding_window.window_mask(positions, positions, 3)
    assert torch.equal(mask, visible(positions, positions, 3))
    ours = layer.o_proj(sliding_window.attend(q, k, parts[2], mask).flatten(1))
    torch.testing.assert_close(ours, layer(x, None, 0)[0])


def test_lesson_03_scans_as_the_model_does():
    draw = torch.Generator().manual_seed(3)
    sizes = (7, 3, 2), (7, 3), (3,), (7, 5), (7, 5), (3, 2, 5)
    x, delta, A, *rest = (torch.rand(s, dtype=torch.float64, generator=draw) for s in sizes)
    theirs = scan_steps(x, delta, -A, *rest)
    torch.testing.assert_close(mamba_mixer.loop(x, delta, -A, *rest), theirs)


def test_lesson_04b_streams_as_the_package_does():
    tokenizer = Plamo2Tokenizer.from_folder(Path("tests/golden/tok_a"))
    for stop in ("END", "あい", "aab"):
        stream, held = TextStream(tokenizer, SamplingParams(stop=[stop])), ""
        for token in tokenizer.encode("aaaab EN ENDE ああい", add_bos=False):
            new = tokenizer.decode([token])
            if "\ufffd" in new:
                continue
            shown, held, stopped = logits_to_text.release(held, new, stop)
            assert (stream.push(token), stream.stopped_by) == (shown, stop if stopped else None)
            if stopped:
                break
