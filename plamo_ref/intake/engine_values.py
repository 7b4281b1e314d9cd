"""Which values an engine's setting may have. None, where vLLM has it, is our default.

Invariant: every field has a kind here, or where its choices are known.
"""

from collections.abc import Sequence
from typing import Any

from plamo_ref.intake.speculation import Speculation
from plamo_ref.intake.values import (
    Flag,
    Kind,
    Listed,
    NoneFor,
    Number,
    OneOf,
    Seed,
    Text,
    Torchs,
    Whole,
)
from plamo_ref.quantization.schemes import SCHEMES

FP8 = {"fp8_e4m3": "fp8", "float8_e4m3fn": "fp8"}
NO_HALF = " (float16 overflows in this model; a GPU without bfloat16, as the T4, takes float32)"


def engine_kinds(defaults: Any, dtypes: Sequence[str], fewer: Sequence[str]) -> dict[str, Kind]:
    """Kinds by field; `defaults` has a field's default, `fewer` are the bytes of states."""
    positive = Whole("1 or more", least=1)
    dtypes, states = ("auto", *dtypes), ("auto", *dtypes, *fewer)
    return {
        "load_format": OneOf(("auto", "dummy"), other_names={"safetensors": "auto"}),
        "dtype": Torchs(OneOf(dtypes, NO_HALF, {"float": "float32"})),
        "quantization": NoneFor(OneOf(tuple(SCHEMES))),
        "device": Torchs(Text("'auto', 'cpu', 'cuda' or 'cuda:1'")),
        "tensor_parallel_size": NoneFor(positive, defaults.tensor_parallel_size),
        "pipeline_parallel_size": NoneFor(positive, defaults.pipeline_parallel_size),
        "disable_custom_all_reduce": Flag(),
        "data_parallel_size": NoneFor(positive, defaults.data_parallel_size),
        "block_size": NoneFor(positive, defaults.block_size),
        "max_num_seqs": NoneFor(positive),
        "max_num_batched_tokens": NoneFor(positive),
        "max_step_time_ms": NoneFor(Number("above 0", lambda x: x > 0)),
        "scheduler": OneOf(("v1", "v0")),
        "chunk_size": NoneFor(positive),
        "memory_bytes": NoneFor(positive),
        "gpu_memory_utilization": Number("above 0 and at most 1", lambda x: 0 < x <= 1),
        "max_model_len": NoneFor(positive),
        "state_dtype": Torchs(OneOf(states, other_names=FP8)),
        "kv_cache_dtype": Torchs(OneOf(("auto", "fp8"), other_names=FP8)),
        "state_rounding": OneOf(("nearest", "stochastic")),
        "state_replay": Whole("1 (off) to 16: more would weigh more", least=1, most=16),
        "generation_config": NoneFor(Text(), defaults.generation_config),
        "speculative_config": NoneFor(Speculation()),
        "seed": NoneFor(Seed(), defaults.seed),
        "compile": OneOf(("none", "attention", "all")),
        "compile_sizes": Listed("numbers of tokens, 1 or more each", positive),
        "pdl": Flag(),
        "overlap": NoneFor(Flag()),
        "adjust_tables": Flag(),
        "cuda_graphs": Flag(),
        "graph_tokens": Whole("0 (record decode steps only) or more"),
        "warm_up_seconds": Number("0 (record when needed) or more", lambda x: x >= 0),
        "precompile": Flag(),
        "enable_prefix_caching": NoneFor(Flag()),
        "one_arena": NoneFor(Flag(), defaults.one_arena),
        "photographs": Flag(),
        "photograph_interval": Whole("0 (none) or more"),
        "record": NoneFor(Flag("True, False or the name of a file", or_file=True)),
    }
