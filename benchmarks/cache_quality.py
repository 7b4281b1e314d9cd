"""What a cache in fewer bytes costs a trained model: `python benchmarks/cache_quality.py TEXT…`.

The texts are those of benchmarks/quantization_quality.py, split as there; what was never trained on
is laid end to end. Everything is computed by the twins in float32 on a CPU, so that the cache is
the only thing that differs. Rows of four kinds:

    quality   rows of 2,048 tokens, --rows of the 11 that the held-out text has, spread over it, fed
              token by token, as a decode does, so that a state is rounded at each: bits for a byte,
              divergence of the next token's distribution from the exact model's (all in all, and
              in each eighth of a row), how often both find the same token likeliest
    drift     20,000 tokens through the recurrence of two layers with the exact model's inputs, for
              the head that forgets slowest, a middle one, and the fastest: ‖S - exact‖ / ‖exact‖,
              and the same of what is read (S C), over the tokens since the last mark; and the
              half-life of the heads over these
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
ROW, SIZE = 2048, 16  # tokens of a row, of a block
LONG, LAYERS = 20_000, 2  # tokens and layers of the drift
MARKS = sorted(round(LONG / 10 ** (i / 10)) for i in range(24))
WALK = 512  # tokens of the walk


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


def quality(model: Plamo2Model, ids: Tensor, size: int) -> Iterator[dict[str, Any]]:
    """size: bytes of the text of all tokens [rows, ROW] but the first of each row."""
    exact = [row.half() for row in decoded(model, ids, "float32", "float32")]
    base = None
    combinations = [("float32", keys) for keys in KEYS]
    combinations += [("fp8, stochastic", KEYS[2])]
    combinations += [(state, "float32") for state in STATES if state != "float32"]
    eighth = ROW // 8
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
                nats -= float(q.gather(1, ids[:, at + 1 : at + 2]).sum())
        bits = nats / math.log(2) / size
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
            "kl_by_eighth": [
                round(sum(by_position[i : i + eighth]) / eighth, 7) for i in range(0, ROW, eighth)
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


class Kept:
    """A few heads of a layer as one format keeps them, and how far that is from exact."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        dtype, stochastic = STATES[name]
        ssm = torch.zeros(shape, dtype=dtype)
        made = mamba_cache(ssm, ssm, stochastic)
        self.cache = made if isinstance(made, NarrowCache) else NarrowCache(ssm, ssm, None, False)
        self.slot = torch.zeros(1, dtype=torch.int64)
        self.state = torch.zeros(shape)
        self.since: list[Tensor] = []  # squares since the last mark: state, what is read; each [H]
        self.state_error: list[Tensor] = []
        self.read_error: list[Tensor] = []

    def step(self, decay: Tensor, new: Tensor, A: Tensor, position: int) -> None:
        state = self.state * decay + new
        keep(state, self.cache, self.slot, A, torch.tensor([position]))
        self.state = widen(self.cache, self.slot, F32)

    def compare(self, exact: Tensor, C: Tensor) -> None:
        self.since.append(squares(self.state - exact, C))

    def mark(self, of: Tensor) -> None:
        """of [2, H]: the squares of the exact state and of what is read from it."""
        state, read = (torch.stack(self.since).sum(0) / of).sqrt()
        self.state_error.append(state)
        self.read_error.append(read)
        self.since.clear()


def squares(states: Tensor, C: Tensor) -> Tensor:
    """states [1, H, P, N], C [N] → [2, H]: squares of the states and of what is read from them."""
    return torch.stack((states.square().sum((0, 2, 3)), (states @ C).square().sum((0, 2))))


def half_life(log_decay: Tensor) -> Tensor:
    """[T, H] → [H], in tokens."""
    return math.log(0.5) / log_decay.mean(0)


def by_head(series: list[Tensor]) -> list[list[float]]:
    return [[round(float(x), 6) for x in head] for head in torch.stack(series, 1)]


def drift(layer: int, inputs: ScanInputs, params: ScanParams) -> Iterator[dict[str, Any]]:
    """Three heads of one layer, each format beside the exact recurrence."""
    delta = torch.nn.functional.softplus(inputs.dt + params.dt_bias)
    half_lives = half_life(delta * params.A)
    slowest_first = half_lives.argsort(descending=True)
    heads = slowest_first[[0, len(slowest_first) // 2, -1]]
    u, B, C, A = inputs.u[:, heads], inputs.B, inputs.C, params.A[heads]
    delta = delta[:, heads]
    log_decay, added = delta * A, delta[..., None] * u
    decay = log_decay.exp()
    shape = (1, len(heads), u.shape[2], B.shape[1])
    exact, of = torch.zeros(shape), torch.zeros(2, len(heads))
    kept = {name: Kept(name, shape) for name in STATES if name != "float32"}
    walk: dict[str, list[float]] = {name: [] for name in ("float32", *kept)}
    since = [half_life(part) for part in log_decay.tensor_split(MARKS)[:-1]]
    for t in range(LONG):
        new = added[t][None, :, :, None] * B[t]
        fading = decay[t][None, :, None, None]
        exact = exact * fading + new
        of += squares(exact, C[t])
        for each in kept.values():
            each.step(fading, new, A, t + 1)
            each.compare(exact, C[t])
        if t + 1 in MARKS:
            for each in kept.values():
                each.mark(of)
            of = torch.zeros_like(of)
        if t >= LONG - WALK:
            walk["float32"].append(round(float(exact[0, 0, 0, 0]), 6))
            for name, each in kept.items():
                walk[name].append(round(float(each.state[0, 0, 0, 0]), 6))
    for name, each in kept.items():
        yield {
            "what": "drift",
            "layer": layer,
            "heads": heads.tolist(),
            "half_life_tokens": [round(float(x), 2) for x in half_lives[heads]],
            "state": name,
            "tokens": MARKS,
            "half_life_by_head": by_head(since),
            "state_error_by_head": by_head(each.state_error),
            "read_error_by_head": by_head(each.read_error),
        }
    yield {
        "what": "walk",
        "layer": layer,
        "head": int(heads[0]),
        "first_token": LONG - WALK + 1,
        "series": walk,
    }


def outliers(model: Plamo2Model, ids: Tensor) -> Iterator[dict[str, Any]]:
    seen: dict[int, Tensor] = {}
    names: dict[int, tuple[int, str]] = {}
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
    read(model.with_ops(TORCH.but(**spied)), torch.cat((ids[:1000], ids[-1000:])))
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
    parser.add_argument("--rows", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = Recipe()
    texts = [path.read_text(encoding="utf-8") for path in options.texts]
    held_out = split(texts, held_out_share=recipe.held_out_share, seed=recipe.seed).held_out
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
        all_rows = text[: len(text) // ROW * ROW].view(-1, ROW)
        ids = all_rows[torch.linspace(0, len(all_rows) - 1, options.rows).round().long()]
        spoken = [t for t in ids[:, 1:].flatten().tolist() if t not in llm.tokenizer.control_ids]
        found(quality(model, ids, sum(len(llm.tokenizer.token_bytes(t)) for t in spoken)))


if __name__ == "__main__":
    main()
