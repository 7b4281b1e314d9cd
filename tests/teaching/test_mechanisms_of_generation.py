"""What lesson 04 lends acts as the reference's layer does.

Invariant tested: whoever goes on with what is lent, goes on with the model.
"""

import pytest
import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.reference.model import Layer
from plamo_ref.teaching.mechanisms.reference_generation import one_layer


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
