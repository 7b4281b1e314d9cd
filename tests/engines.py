"""Small engines for the tests: one model for every set of memory groups that PLaMo 2 can have.

Invariant tested: none here; see plamo_ref/proof/lab.py for what these are made of.
"""

from functools import cache

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine import build
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.proof.lab import Pair, lab_config, lab_plan, least_blocks, random_pair
from plamo_ref.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8)

# A PLaMo 2 always has an attention layer, so there is no model of Mamba alone.
CONFIGS = {
    "mamba, sliding and full": lab_config(),
    "mamba and sliding": lab_config(full_attention_idx=(), num_key_value_heads=4),
    "mamba and full": lab_config(full_attention_idx=(1, 3), num_key_value_heads=1),
    "sliding and full": lab_config(
        mamba_enabled=False, num_hidden_layers=3, full_attention_idx=(1,)
    ),
    "sliding": lab_config(mamba_enabled=False, num_hidden_layers=2, full_attention_idx=()),
    "full": lab_config(mamba_enabled=False, num_hidden_layers=2, full_attention_idx=(0, 1)),
    "three Mamba layers to one, a window of 1": lab_config(
        mamba_step=4, num_hidden_layers=5, full_attention_idx=(), attention_window_size=1
    ),
    "attention in the last layer only, untied, a vocabulary that is padded": lab_config(
        mamba_step=6,
        num_hidden_layers=3,
        full_attention_idx=(),
        attention_window_size=9,
        vocab_size=61,
        mamba_d_conv=2,
        tie_word_embeddings=False,
    ),
}


@cache
def pair(name: str) -> Pair:
    """The served model and the reference, in float64."""
    return random_pair(CONFIGS[name])


def new_core(
    config: Plamo2Config | None = None,
    *,
    longest: int = 64,
    seats: int = 4,
    more_blocks: int = 200,
    **engine: object,
) -> EngineCore:
    """An engine with the small hybrid model; `more_blocks` beyond what one request needs."""
    models = pair("mamba, sliding and full") if config is None else random_pair(config)
    settings = {"block_size": 4, "max_num_seqs": seats, "max_num_batched_tokens": 16} | engine
    wanted = EngineConfig(dtype="float64", device="cpu", **settings)  # type: ignore[arg-type]
    least = least_blocks(models.config, wanted.block_size, longest)
    plan = lab_plan(
        models.config,
        block_size=wanted.block_size,
        blocks={kind: count + more_blocks for kind, count in least.items()},
        slots=seats,
        max_num_seqs=seats,
    )
    return build.new_core(ModelRunner(models.served, plan, torch.float64), plan, wanted)
