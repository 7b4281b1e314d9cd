"""What lessons 00 and 04 lend acts as the reference does.

Invariant tested: whoever goes on with what is lent, goes on with the model.
"""

import pytest
import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.reference import Plamo2Reference
from plamo_ref.reference.model import Layer
from plamo_ref.teaching.mechanisms.reference_generation import one_layer
from plamo_ref.teaching.mechanisms.start_here import engine_for_one


def test_lesson_00_continues_as_the_whole_text_does_and_feeds_each_token_once():
    reference = Plamo2Reference.from_pretrained("tiny", torch.float64)
    ids, fed = [1, 970, 389], []

    def run(ids, state=None):
        fed.append(len(ids))
        return reference.run(torch.tensor(ids), state)

    out = engine_for_one(run, ids, 6)
    assert fed == [3, 1, 1, 1, 1, 1]
    assert ids == [1, 970, 389]
    scores = reference(torch.tensor(ids + out))
    assert scores[2:-1].argmax(-1).tolist() == out


@pytest.mark.parametrize("index", [0, 1])
def test_lesson_04_runs_a_layer_as_the_model_does(index):
    config = Plamo2Config(
        num_hidden_layers=2, hidden_size=12, hidden_size_per_head=4, num_attention_heads=6,
        num_key_value_heads=2, attention_window_size=3, intermediate_size=20, mamba_num_heads=4,
        mamba_step=2, vocab_size=32,
    )  # fmt: skip
    layer, draw = Layer(config, index, chunked=False).double(), torch.Generator().manual_seed(4)
    for weight in layer.parameters():  # no gain is 0, no two are alike
        weight.data = 0.3 * torch.randn(weight.shape, dtype=torch.float64, generator=draw)
    x = torch.randn(9, 12, dtype=torch.float64, generator=draw)

    def norm(x, place, offset):
        module = layer.get_submodule(f"{place}_norm")
        assert module.offset == offset
        return module(x)

    matrices = layer.mlp.gate_up_proj.weight, layer.mlp.down_proj.weight
    ours, state = one_layer(x, norm, lambda x: layer.mixer(x, None, 0), *matrices)
    theirs, kept = layer(x, None, 0)
    torch.testing.assert_close(ours, theirs)
    assert type(state) is type(kept)
    for mine, own in zip(vars(state).values(), vars(kept).values(), strict=True):
        torch.testing.assert_close(mine, own)
