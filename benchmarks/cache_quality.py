"""What a cache in fewer bytes costs a trained model: `python benchmarks/cache_quality.py TEXT…`.

The texts are those of benchmarks/quantization_quality.py, split as there; what was never trained on
is laid end to end. Everything is computed by the twins in float32 on a CPU, so that the cache is
the only thing that differs. Rows of four kinds:

    quality   the held-out text, in rows of 512 tokens (--rows: all of it is 46) fed token by token,
              as a decode does, so that a state is rounded at each of them: bits for a byte,
              divergence of the next token's distribution from the exact model's, how often both
              find the same token likeliest
    drift     20,000 tokens through the recurrence of two layers with the exact model's inputs:
              ‖S - exact‖ / ‖exact‖, and the same of what is read (S C), as series over the tokens
    walk      one number of a state over the last 512 of these tokens, exact and as it is kept
    outliers  activations before each product: the largest |x| over the median token's largest, and
              the relative error of e4m3 with a scale for the tensor and with one for each token
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plamo_ref import LLM
from plamo_ref.batch import AttentionCache, ForwardBatch, LayerCache, MambaCache, NarrowCache, Room
from plamo_ref.bench.report import report, write
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.ssm.narrow import keep, mamba_cache, widen
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams
from plamo_ref.model import Mamba, Plamo2Model
from tools.tiny.corpus import encode_passages, split
from tools.tiny.run import Recipe

F32, FP8 = torch.float32, torch.float8_e4m3fn
STATES: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (F32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, stochastic": (torch.bfloat16, True),
    "fp8": (FP8, False),
    "fp8, stochastic": (FP8, True),
    "int8": (torch.int8, False),
    "int8, stochastic": (torch.int8, True),
}
KEYS = ("float32", "bfloat16", "fp8, scale 1", "fp8, a scale a token and head")
ROW, SIZE = 512, 16  # tokens of a row, of a block
LONG, LAYERS, HEADS = 20_000, 2, 3  # tokens, layers and heads of the drift
MARKS = sorted({*(round(100 * 10 ** (i / 10)) for i in range(24)), 2000, LONG})


def as_kept(x: Tensor, how: str) -> Tensor:
    """Keys or values [T, G, P] as numbers that a format has."""
    if how == "float32":
        return x
    if how == "bfloat16":
        return x.bfloat16().to(x.dtype)
    scale = x.abs().amax(-1, keepdim=True) / 448 if "token" in how else torch.ones(())
    return (x / scale).clamp(-448, 448).to(FP8).to(x.dtype) * scale


def caches_of(model: Plamo2Model, state: str, rows: int) -> list[LayerCache]:
    """A slot and the blocks of a row for each row; number 0 is nobody's."""
    config, (dtype, stochastic) = model.config, STATES[state]
    heads, size, inner = (
        config.mamba_num_heads,
        config.hidden_size_per_head,
        config.mamba_inner_size,
    )
    caches: list[LayerCache] = []
    for kind in config.layer_kinds:
        if kind == "mamba":
            conv = torch.zeros(rows + 1, inner, config.mamba_d_conv - 1)
            ssm = torch.zeros(rows + 1, heads, size, config.mamba_d_state, dtype=dtype)
            caches.append(mamba_cache(conv, ssm, stochastic))
        else:
            shape = (1 + rows * ROW // SIZE, SIZE, config.num_key_value_heads, size)
            caches.append(AttentionCache(torch.zeros(shape), torch.zeros(shape)))
    return caches


def decoded(model: Plamo2Model, ids: Tensor, state: str, keys: str) -> Iterator[Tensor]:
    """ids [rows, ROW] → log probabilities [rows, V] after each token, fed one a step."""

    def write_kv(*arguments: Any) -> Tensor:
        q = TORCH.qk_norm_rope_write(*arguments)
        *_, k, v, places = arguments
        for memory in (k.flatten(0, 1), v.flatten(0, 1)):
            memory[places] = as_kept(memory[places], keys)
        return q

    model = model.with_ops(TORCH.but(qk_norm_rope_write=write_kv))
    kinds = sorted({kind for kind in model.config.layer_kinds if kind != "mamba"})
    rows, blocks = len(ids), ROW // SIZE
    batch = ForwardBatch.empty(
        Room(rows, 0, 0, tuple((kind, blocks) for kind in kinds)), torch.device("cpu")
    )
    batch.state_slots[:] = torch.arange(1, rows + 1)
    for group in batch.groups.values():
        group.block_table[:] = 1 + torch.arange(rows * blocks).view(rows, blocks)
    caches = caches_of(model, state, rows)
    for at in range(ROW):
        batch.token_ids[:], batch.positions[:], batch.seq_lens[:] = ids[:, at], at, at + 1
        batch.has_past[:] = int(at > 0)
        for group in batch.groups.values():
            group.slot_mapping[:] = group.block_table[:, at // SIZE] * SIZE + at % SIZE
        yield model.logits(model.forward(batch, caches)).log_softmax(-1)


def quality(model: Plamo2Model, ids: Tensor, bytes_per_token: float) -> Iterator[dict[str, Any]]:
    exact = [row.half() for row in decoded(model, ids, "float32", "float32")]
    base = None
    combinations = [(state, "float32") for state in STATES]
    combinations += [("float32", keys) for keys in KEYS[1:]]
    combinations += [("fp8, stochastic", KEYS[3]), ("int8, stochastic", KEYS[3])]
    for state, keys in combinations:
        nats, divergence, same = 0.0, 0.0, 0.0
        by_position = []
        for at, q in enumerate(decoded(model, ids, state, keys)):
            p = exact[at].float().log_softmax(-1)
            here = float((p.exp() * (p - q)).sum(-1).mean())
            by_position.append(here)
            divergence += here
            same += float((p.argmax(-1) == q.argmax(-1)).float().mean())
            if at + 1 < ROW:
                nats -= float(q.gather(1, ids[:, at + 1 : at + 2]).mean())
        bits = nats / (ROW - 1) / math.log(2) / bytes_per_token
        base = bits if base is None else base
        yield {
            "what": "quality",
            "state": state,
            "keys": keys,
            "tokens": ids.numel(),
            "bits_per_byte": round(bits, 5),
            "more_bits": round(bits / base - 1, 6),
            "kl_nats": round(divergence / ROW, 7),
            "same_token_on_top": round(same / ROW, 5),
            "kl_by_64_positions": [
                round(sum(by_position[i : i + 64]) / 64, 7) for i in range(0, ROW, 64)
            ],
        }


def captured(model: Plamo2Model, ids: Tensor) -> list[tuple[int, ScanInputs, ScanParams]]:
    """What enters the scan of each Mamba layer when the exact model reads a text."""
    found: list[tuple[ScanInputs, ScanParams]] = []

    def scan(inputs: ScanInputs, params: ScanParams, batch: ForwardBatch, cache: MambaCache) -> Any:
        found.append((inputs, params))
        return TORCH.scan(inputs, params, batch, cache)

    logits = read(model.with_ops(TORCH.but(scan=scan)), ids)
    assert logits.isfinite().all()
    numbers = [i for i, kind in enumerate(model.config.layer_kinds) if kind == "mamba"]
    parts = len(found) // len(numbers)
    made = []
    for place, number in enumerate(numbers):
        own = [found[part * len(numbers) + place] for part in range(parts)]
        joined = [
            torch.cat([getattr(i, name) for i, _ in own]) for name in ("u", "z", "dt", "B", "C")
        ]
        made.append((number, ScanInputs(*joined), own[0][1]))
    return made


def read(model: Plamo2Model, ids: Tensor, chunk: int = 2000) -> Tensor:
    """One text as a prompt in chunks → the last hidden state."""
    config, total = model.config, len(ids)
    blocks = -(-total // SIZE)
    caches: list[LayerCache] = []
    for cache in caches_of(model, "float32", 1):
        if isinstance(cache, AttentionCache):
            shape = (blocks + 1, *cache.keys.shape[1:])
            cache = AttentionCache(torch.zeros(shape), torch.zeros(shape))
        caches.append(cache)
    kinds = sorted({kind for kind in config.layer_kinds if kind != "mamba"})
    hidden = torch.zeros(1)
    for start in range(0, total, chunk):
        count = min(chunk, total - start)
        room = Room(0, 1, count, tuple((kind, blocks) for kind in kinds))
        batch = ForwardBatch.empty(room, torch.device("cpu"))
        position = torch.arange(start, start + count)
        batch.token_ids[:], batch.positions[:] = ids[start : start + count], position
        batch.seq_lens[:], batch.has_past[:], batch.state_slots[:] = (
            start + count,
            int(start > 0),
            1,
        )
        batch.query_start_loc[1], batch.prefill_start_loc[1] = count, count
        for group in batch.groups.values():
            group.block_table[:] = 1 + torch.arange(blocks)
            group.slot_mapping[:] = SIZE + position
        hidden = model.forward(batch, caches)
    return hidden


def drift(layer: int, inputs: ScanInputs, params: ScanParams) -> Iterator[dict[str, Any]]:
    """A few heads of one layer, each format beside the exact recurrence."""
    heads = torch.linspace(0, len(params.A) - 1, HEADS).long()  # over the layer
    u, B, C = inputs.u[:, heads], inputs.B, inputs.C
    A = params.A[heads]
    delta = torch.nn.functional.softplus(inputs.dt[:, heads] + params.dt_bias[heads])
    decay, added = (delta * A).exp(), delta[..., None] * u
    names = [name for name in STATES if name != "float32"]
    shape = (1, len(heads), u.shape[2], B.shape[1])
    exact, slot = torch.zeros(shape), torch.zeros(1, dtype=torch.int64)
    kept = {}
    for name in names:
        dtype, stochastic = STATES[name]
        ssm = torch.zeros(shape, dtype=dtype)
        made = mamba_cache(ssm, ssm, stochastic)
        kept[name] = made if isinstance(made, NarrowCache) else NarrowCache(ssm, ssm, None, False)
    state_error: dict[str, list[float]] = {name: [] for name in names}
    read_error: dict[str, list[float]] = {name: [] for name in names}
    walk: dict[str, list[float]] = {name: [] for name in ("float32", *names)}
    for t in range(LONG):
        new = added[t][None, :, :, None] * B[t]
        exact = exact * decay[t][None, :, None, None] + new
        truth = exact @ C[t]
        number = t + 1
        for name, cache in kept.items():
            state = widen(cache, slot, F32) * decay[t][None, :, None, None] + new
            keep(state, cache, slot, A, torch.tensor([number]))
            if number in MARKS or number > LONG - ROW:
                got = widen(cache, slot, F32)
                if number in MARKS:
                    state_error[name].append(float((got - exact).norm() / exact.norm()))
                    read_error[name].append(float((got @ C[t] - truth).norm() / truth.norm()))
                if number > LONG - ROW:
                    walk[name].append(round(float(got[0, 0, 0, 0]), 6))
        if number > LONG - ROW:
            walk["float32"].append(round(float(exact[0, 0, 0, 0]), 6))
    half_life = [
        round(float(math.log(0.5) / decay[:, i].log().mean()), 2) for i in range(len(heads))
    ]
    for name in names:
        yield {
            "what": "drift",
            "layer": layer,
            "heads": heads.tolist(),
            "half_life_tokens": half_life,
            "state": name,
            "tokens": MARKS,
            "state_error": [round(x, 6) for x in state_error[name]],
            "read_error": [round(x, 6) for x in read_error[name]],
        }
    yield {"what": "walk", "layer": layer, "head": 0, "first_token": LONG - ROW + 1, "series": walk}


def outliers(model: Plamo2Model, ids: Tensor) -> Iterator[dict[str, Any]]:
    seen: dict[int, Tensor] = {}
    names = {}
    for number, layer in enumerate(model.layers):
        mixer = layer.mixer
        first, last = (
            ("in_proj", "out_proj") if isinstance(mixer, Mamba) else ("qkv_proj", "o_proj")
        )
        products = {first: getattr(mixer, first), last: getattr(mixer, last)}
        products |= {"bcdt_proj": mixer.bcdt_proj} if isinstance(mixer, Mamba) else {}
        products |= {"gate_up_proj": layer.gate_up_proj, "down_proj": layer.down_proj}
        names |= {id(linear.weight): (number, name) for name, linear in products.items()}

    def spy(operation: Any) -> Any:
        def call(x: Tensor, weight: Tensor) -> Tensor:
            seen[id(weight)] = x
            return operation(x, weight)

        return call

    spied = {n: spy(getattr(TORCH, n)) for n in ("linear", "linear_parts", "linear_swiglu")}
    read(model.with_ops(TORCH.but(**spied)), ids[:2000])
    for weight, (number, name) in sorted(names.items(), key=lambda item: item[1]):
        x = seen[weight]
        most = x.abs().amax(1)

        def error(scale: Tensor, x: Tensor = x) -> float:
            return float(((x / scale).to(FP8).to(F32) * scale - x).norm() / x.norm())

        # As if a token a thousand times as large were there: what one scale for all would leave.
        yield {
            "what": "outliers",
            "layer": number,
            "product": name,
            "largest_over_median_token": round(float(most.max() / most.median()), 3),
            "smallest_over_median_token": round(float(most.min() / most.median()), 4),
            "largest_over_median_channel": round(
                float(x.abs().amax(0).max() / x.abs().amax(0).median()), 3
            ),
            "fp8_error_per_tensor": round(error(most.max() / 448), 5),
            "fp8_error_per_token": round(error(most[:, None] / 448), 5),
            "fp8_error_per_tensor_by_outlier": {
                str(factor): round(error(most.max() * factor / 448), 5)
                for factor in (10, 100, 1000, 10_000)
            },
        }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=46)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = Recipe()
    texts = [path.read_text(encoding="utf-8") for path in options.texts]
    held_out = split(texts, held_out_share=recipe.held_out_share, seed=recipe.seed).held_out
    size = sum(len(text.encode()) for text in held_out)
    with LLM("tiny", device="cpu", dtype="float32", kernels="torch") as llm:
        config, model = llm.model_config, llm.core.runner.model
        assert config.bos_token_id is not None
        assert isinstance(config.eos_token_id, int)
        passages = encode_passages(
            held_out, llm.tokenizer.encode, config.bos_token_id, config.eos_token_id
        )
        text = torch.tensor([token for ids in passages for token in ids])
        rows: list[dict[str, Any]] = []

        def found(results: Iterator[dict[str, Any]]) -> None:
            for row in results:
                rows.append(row)
                print({key: row[key] for key in list(row)[:9]}, flush=True)
                if options.json:
                    write(report("cache_quality", rows), options.json)

        found(outliers(model, text))
        layers = captured(model, text[:LONG])
        for layer in (layers[0], layers[-1])[:LAYERS]:
            found(drift(*layer))
        rows_of = text[: options.rows * ROW].view(options.rows, ROW)
        found(quality(model, rows_of, size / len(text)))


if __name__ == "__main__":
    main()
