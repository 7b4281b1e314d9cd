"""Weights in fewer bytes: formats, what is quantized, loading, ranks.

Invariant tested: what is stored stands for the weight within half a step of its scale; a model is
never in memory twice; every way to the same model computes the same.
"""

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from engines import new_core

from plamo_ref import LLM, SamplingParams
from plamo_ref.batch import Room
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.fast.dry_run import dry_run
from plamo_ref.engine.memory.device_bytes import plan_device
from plamo_ref.engine.source import open_source
from plamo_ref.intake.hub import find
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.linear.quantized import quantize_tokens
from plamo_ref.kernels.table import Table
from plamo_ref.linear import Linear
from plamo_ref.parallel.model import AddedLinear, load_random, load_stored, own_rows_or_columns
from plamo_ref.proof.lab import lab_config
from plamo_ref.proof.ranks import Meeting, ThreadGroup
from plamo_ref.quantization.quantize import dequantize, quantize
from plamo_ref.quantization.schemes import PRODUCTS, SCHEMES, is_quantized
from plamo_ref.quantization.weight import QuantizedTokens, QuantizedWeight
from plamo_ref.quantization.words import pack, unit_of, unpack
from plamo_ref.weights.checkpoint import Checkpoint
from plamo_ref.weights.loading import StoredWeights, load_model
from plamo_ref.weights.random import random_model
from plamo_ref.weights.save import save

CPU = torch.device("cpu")
PLACE = (TORCH, torch.float64, CPU)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
# Every product that is cut by columns has a group of int4's for each of two ranks.
HYBRID = lab_config(
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size_per_head=64,
    mamba_num_heads=4,
    intermediate_size=256,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "unit"), [(4, 32), (4, 64), (4, 128), (8, 16), (8, 32), (8, 64)])
def test_packed_numbers_come_back_and_lie_where_the_matrix_unit_wants_them(bits, unit):
    offset, draw = 1 << bits - 1, torch.Generator().manual_seed(1)
    numbers = torch.randint(-offset, offset, (5, 3 * unit), generator=draw)
    packed = pack(numbers, bits, unit)
    assert packed.shape == (5, 3 * unit * bits // 8)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits, unit).long(), numbers)
    words, each = packed.view(torch.int32).unflatten(1, (3, 4, -1)), 128 // bits
    for column in range(unit):
        word, place = column // each, column % each // 8
        thread, half = column % 8 // 2, column % 2
        bit = 16 * half + bits * place
        there = int(words[2, 1, thread, word]) >> bit & (1 << bits) - 1  # in the second unit
        assert there == int(numbers[2, unit + column]) + offset


@pytest.mark.parametrize(
    ("columns", "start", "stop"),
    # units of 64, 32, 16 and none; cut as they are, into smaller ones, and into larger ones
    [(256, 64, 192), (128, 32, 96), (96, 32, 96), (160, 16, 64), (72, 8, 72), (144, 0, 72)],
)
def test_int8_is_cut_anywhere(columns, start, stop):
    weight = quantize(noise(6, columns), SCHEMES["int8"])
    part = weight.part((slice(None), slice(start, stop)))
    assert part is not None
    assert part.shape == (6, stop - start)
    assert torch.equal(part.numbers, weight.numbers[:, start:stop])
    wanted = dequantize(weight, torch.float64)[:, start:stop]
    assert torch.equal(dequantize(part, torch.float64), wanted)


def test_what_is_packed_together_is_as_much_as_the_columns_allow():
    columns = (8, 16, 24, 32, 48, 64, 96, 128, 160, 4096)
    units = [unit_of("int8", n, 0) for n in columns]
    assert units == [0, 16, 0, 32, 16, 64, 32, 64, 32, 64]
    assert (unit_of("int4", 4096, 128), unit_of("fp8", 4096, 0)) == (128, 0)


def test_scales_of_neighbouring_rows_are_neighbours():
    weight = quantize(noise(6, 256), SCHEMES["int4"])
    for made in (weight, QuantizedWeight.joined([weight, weight])):
        assert made.scale.stride(0) == 1
    assert torch.equal(made.scale, torch.cat([weight.scale] * 2))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_weight_comes_back_within_half_a_step(name):
    weight = noise(70, 384) * torch.logspace(-6, 6, 70)[:, None]
    weight[3] = 0
    stored, scheme = quantize(weight, SCHEMES[name]), SCHEMES[name]
    assert stored.shape == (70, 384)
    back = dequantize(stored, torch.float64)
    error = (back - weight).abs()
    assert not back[3].any()
    if scheme.format == "int8":
        assert (error <= stored.scale[:, None] * 0.5001).all()
    elif scheme.format == "fp8":  # three bits of fraction; below 2 to the -6, steps of 2 to the -9
        least = stored.scale.double()[:, None] * 2**-10
        assert (error <= (weight.abs() / 16).maximum(least) * 1.0001).all()
    else:
        ratios = error.norm(dim=1) / weight.norm(dim=1).clamp_min(1e-30)
        assert ratios.max() < 0.15
    if scheme.per_tensor:
        assert len(stored.scale.unique()) == 1


def test_int4_chooses_a_scale_that_is_better_than_the_largest_weights():
    weight = noise(64, 1024)
    grouped = weight.unflatten(1, (-1, 128))
    scale = grouped.abs().amax(2, keepdim=True) / 7.5
    plain = ((grouped / scale).round().clamp(-8, 7) * scale).flatten(1)
    back = dequantize(quantize(weight, SCHEMES["int4"]), torch.float64)
    assert (back - weight).norm() < 0.96 * (plain - weight).norm()


def test_slices_of_rows_are_quantized_as_the_whole_is(monkeypatch):
    weight = noise(65, 256)
    whole = [quantize(weight, scheme) for scheme in SCHEMES.values()]
    monkeypatch.setattr("plamo_ref.quantization.quantize.AT_ONCE", 1000)
    for one, scheme in zip(whole, SCHEMES.values(), strict=True):
        again = quantize(weight, scheme)
        assert torch.equal(again.values.view(torch.uint8), one.values.view(torch.uint8))
        assert torch.equal(again.scale, one.scale)


def test_tokens_have_scales_of_their_own_and_outliers_hurt_only_theirs():
    x = noise(3, 256)
    x[1, 5] = 1e4
    tokens = quantize_tokens(x)
    back = tokens.values.double() * tokens.scale.double()[:, None]
    ratios = (back - x).norm(dim=1) / x.norm(dim=1)
    assert ratios[0] < 0.03
    assert ratios[2] < 0.03
    assert abs(float(back[1, 5]) - 1e4) < 1
    halved = quantize_tokens(x[:, :128], x.abs().amax(1).float())
    assert torch.equal(halved.values.float(), tokens.values[:, :128].float())


def test_the_product_of_a_request_does_not_depend_on_its_company():
    weight = quantize(noise(40, 128), SCHEMES["fp8"])
    x = noise(50, 128, seed=2)
    linear = Linear(weight, TORCH)
    torch.testing.assert_close(linear(x)[7:8], linear(x[7:8]), rtol=1e-12, atol=1e-12)


# --- who quantizes activations --------------------------------------------------------------------


class Counted:
    """A table that notes where activations become e4m3."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.ops = TORCH.but(
            quantize_tokens=self.noted("quantize_tokens"),
            add_norm=self.noted("add_norm"),
            quantized_linear_swiglu=self.noted("quantized_linear_swiglu"),
        )

    def noted(self, name):
        def operation(*arguments):
            made = getattr(TORCH, name)(*arguments)
            last = made[1] if isinstance(made, tuple) else made
            if isinstance(last, QuantizedTokens):
                self.made.append(name)
            return made

        return operation


def hidden_states(table: Table, *, compiled: bool = False) -> torch.Tensor:
    """Of a prompt, by an engine with an fp8 model on this table."""
    core, seen = new_core(HYBRID), []
    config = replace(HYBRID, quantization="fp8")
    core.runner.model = model = random_model(config, table, torch.float64, CPU, seed=3)
    if compiled:
        model.compiled = lambda batch: (batch, model.layers)
    forward = model.forward
    model.forward = lambda *given: seen.append(forward(*given)) or seen[-1]  # type: ignore
    core.add([1, 2, 3], GREEDY)
    core.step()
    return seen[0]


def test_activations_are_quantized_where_they_are_made(monkeypatch):
    """A layer has four products; its norms and SwiGLU leave three of their inputs quantized, the
    scan and the attention none. The numbers are those of four launches of their own."""
    counted, layers = Counted(), HYBRID.num_hidden_layers
    found = hidden_states(counted.ops)
    assert counted.made.count("add_norm") == 2 * layers - 1  # the last one's reader is the head
    assert counted.made.count("quantized_linear_swiglu") == layers
    assert counted.made.count("quantize_tokens") == layers + 1  # … and the first layer's input
    counted.made.clear()
    assert torch.equal(found, hidden_states(counted.ops, compiled=True))
    assert counted.made.count("add_norm") == layers  # what a compiled layer is given is plain
    monkeypatch.setattr(Linear, "takes_quantized", False)
    monkeypatch.setattr(Linear, "quantized", lambda linear, x: linear.ops.quantize_tokens(x))
    counted.made.clear()
    plain = hidden_states(counted.ops)
    assert counted.made == ["quantize_tokens"] * 4 * layers
    assert torch.equal(found, plain)


def test_nobody_quantizes_a_part_of_a_row_by_itself():
    config = replace(HYBRID, quantization="fp8")
    layer = load_random(config, 3, ThreadGroup(Meeting(2), 0), *PLACE).layers[0]
    assert layer.gate_up_proj.takes_quantized
    assert layer.mixer.takes_quantized
    assert not layer.down_proj.takes_quantized


# --- what is quantized ----------------------------------------------------------------------------


def test_products_are_quantized_and_nothing_else():
    config = replace(SHAPES["8b"], quantization="int4")
    names = {n for n, s in config.tensor_shapes.items() if is_quantized(n, s, SCHEMES["int4"])}
    assert {name.split(".")[-2] for name in names} == set(PRODUCTS)
    left = set(config.tensor_shapes) - names
    assert {n.split(".")[-2] for n in left if n.endswith("proj.weight")} == {"bcdt_proj", "dt_proj"}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_planner_counts_the_bytes_that_are_there(name):
    config = replace(HYBRID, quantization=name)
    model = random_model(config, TORCH, torch.bfloat16, CPU)
    linears = [
        linear
        for layer in model.layers
        for part in (layer, layer.mixer)
        for linear in vars(part).values()
        if isinstance(linear, Linear) and isinstance(linear.weight, QuantizedWeight)
    ]
    assert len(linears) == config.num_hidden_layers * 4
    stored = sum(linear.weight.nbytes for linear in linears)
    plain = sum(2 * linear.weight.shape[0] * linear.weight.shape[1] for linear in linears)
    assert config.weight_bytes(2) == HYBRID.weight_bytes(2) - plain + stored


def test_a_smaller_model_leaves_more_seats():
    engine, memory = EngineConfig(max_num_seqs=1024, max_num_batched_tokens=512), 24 << 30
    bf16 = plan_device(SHAPES["8b"], engine, memory, torch.bfloat16)
    config = replace(SHAPES["8b"], quantization="int4")
    int4 = plan_device(config, engine, memory, torch.bfloat16)
    assert int4.max_num_seqs > 2 * bf16.max_num_seqs
    assert any("products as int4 (quantization)" in reason for reason in int4.reasons)
    assert not any("quantization" in reason for reason in bf16.reasons)
    assert 0.26 < config.weight_bytes() / SHAPES["8b"].weight_bytes() < 0.4


# --- loading --------------------------------------------------------------------------------------


class Watched:
    """A checkpoint that counts the bytes of tensors it gave away and that still live."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.most, self._checkpoint = checkpoint.config, 0, checkpoint
        self.packed = checkpoint.packed
        self._alive: dict[int, int] = {}

    def tensors(self, **how):
        for name, tensor in self._checkpoint.tensors(**how):
            key, size = id(tensor), tensor.nbytes
            self._alive[key] = size
            weakref.finalize(tensor, self._alive.pop, key)
            self.most = max(self.most, sum(self._alive.values()))
            yield name, tensor
            del tensor


def test_loading_never_holds_more_than_the_quantized_model_and_one_tensor():
    checkpoint = Checkpoint.open(find("tiny"))
    watched = Watched(checkpoint)
    place = {"dtype": torch.float32, "device": CPU}
    load_model(watched, TORCH, quantization="int8", **place)  # type: ignore[arg-type]
    kept = sum(
        checkpoint.shape(n).numel() * 4
        for n in checkpoint.names
        if not is_quantized(n, tuple(checkpoint.shape(n)), SCHEMES["int8"])
    )
    largest = max(checkpoint.shape(n).numel() * 4 for n in checkpoint.names)
    assert kept < watched.most <= kept + largest
    plain = Watched(checkpoint)
    load_model(plain, TORCH, **place)  # type: ignore[arg-type]
    assert plain.most == 2 * checkpoint.nbytes > 2 * watched.most


def test_random_products_are_quantized_before_the_next_one_is_drawn(monkeypatch):
    alive: list[weakref.ref[torch.Tensor]] = []
    plain = torch.Tensor.normal_

    def counted(tensor, *args, **kwargs):
        big = [t for ref in alive if (t := ref()) is not None and t.shape[0] == 512]
        assert not big, "an MLP's weight from before is still there"
        alive.append(weakref.ref(tensor))
        return plain(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", counted)
    random_model(replace(HYBRID, quantization="fp8"), TORCH, torch.bfloat16, CPU)
    assert len(alive) == len(HYBRID.tensor_shapes)


@pytest.mark.parametrize("name", ["fp8_weight_only", "int8", "int4"])
def test_an_engine_computes_what_the_dequantized_model_computes(name, tmp_path):
    """The embedded model, and a folder whose weights are what the scheme makes of them."""
    tiny = Checkpoint.open(find("tiny"))
    scheme = SCHEMES[name]

    def rounded():
        for key, tensor in tiny.tensors(dtype=torch.float32, progress=False):
            if is_quantized(key, tuple(tensor.shape), scheme):
                tensor = dequantize(quantize(tensor, scheme), torch.float32)
            yield key, tensor

    save(tmp_path, tiny.config, rounded())
    ids = {"prompt_token_ids": list(range(40, 60))}
    place = {"device": "cpu", "memory_bytes": 32 << 20}
    with LLM("tiny", quantization=name, **place) as quantized, LLM(tmp_path, **place) as plain:
        got, truth = (llm.generate(ids, GREEDY, use_tqdm=False)[0] for llm in (quantized, plain))
        model, config = quantized.core.runner.model, quantized.model_config
    assert config.quantization == name
    assert isinstance(model.layers[0].gate_up_proj.weight, QuantizedWeight)
    assert got.outputs[0].token_ids == truth.outputs[0].token_ids


def test_dummy_weights_are_quantized_too_and_their_kernels_are_foreseen(monkeypatch):
    engine = EngineConfig(load_format="dummy", quantization="int4", max_num_seqs=2)
    source = open_source(find("tiny"), *engine.source)
    assert source.config.quantization == "int4"
    model = source.load(TORCH, torch.bfloat16, CPU)
    assert isinstance(model.layers[0].down_proj.weight, QuantizedWeight)
    one = Room(1, 0, 0, (("sliding_window", 1), ("full", 1)))
    monkeypatch.setattr("plamo_ref.engine.fast.dry_run.rooms", lambda *_: [one])
    small = EngineConfig(max_num_seqs=1, max_num_batched_tokens=2, quantization="fp8")
    seen = []

    def watch(x, weight):
        seen.append((x.shape, weight.values.device.type))
        return TORCH.quantized_linear_parts(x, weight)

    ops = TORCH.but(
        quantized_linear_parts=watch,
        attend=lambda q, *_: q,
        convolve=lambda u, *_: u.flatten(1),
        scan=lambda inputs, *_: inputs.u,
        qk_norm_rope_write=lambda qkv, q_gain, *_: qkv.new_empty(qkv.shape[1], *q_gain.shape),
        sample=lambda *_: None,
    )
    config = replace(HYBRID, quantization="fp8")
    dry_run(config, small, ops, torch.bfloat16, torch.float32)
    assert {device for _, device in seen} == {"meta"}


def test_a_wrong_scheme_is_refused_with_those_that_there_are():
    with pytest.raises(EngineError, match=r'quantization must be "fp8",.*not .awq'):
        EngineConfig(quantization="awq")
    assert EngineConfig(quantization=None).quantization is None


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_scales_are_cut_with_their_rows_and_columns(name):
    config = replace(HYBRID, quantization=name)
    whole = random_model(config, *PLACE, seed=3)
    groups = [ThreadGroup(Meeting(2), rank) for rank in range(2)]
    shares = [load_random(config, 3, group, *PLACE) for group in groups]
    for of, axis in (
        (lambda m: m.layers[0].mixer.in_proj.weight, 0),
        (lambda m: m.layers[0].mixer.out_proj.weight, 1),
        (lambda m: m.layers[1].mixer.o_proj.weight, 1),
        (lambda m: m.layers[2].down_proj.weight, 1),
    ):
        parts = [dequantize(of(share), torch.float64) for share in shares]
        assert torch.equal(torch.cat(parts, axis), dequantize(of(whole), torch.float64))


def test_a_rank_of_a_stored_model_has_the_scales_of_whole_rows():
    checkpoint = Checkpoint.open(find("tiny"))
    weights = StoredWeights(checkpoint, "int8")
    whole = weights(*PLACE)
    shares = [load_stored(weights, ThreadGroup(Meeting(2), rank), *PLACE) for rank in range(2)]
    parts = [dequantize(share.layers[1].down_proj.weight, torch.float64) for share in shares]
    assert torch.equal(
        torch.cat(parts, 1), dequantize(whole.layers[1].down_proj.weight, torch.float64)
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_ranks_that_share_the_columns_compute_what_one_process_does(name):
    """Activations too: a token's scale is that of its whole row, of which a rank sees a half."""
    weight = quantize(noise(40, 256), SCHEMES[name])
    x = noise(5, 256, seed=4)
    x[2, 200] = 50  # the largest number of a row is on one rank alone
    truth, meeting = Linear(weight, TORCH)(x), Meeting(2)

    def rank(number: int) -> torch.Tensor:
        columns = slice(number * 128, number * 128 + 128)
        own = weight.part((slice(None), columns))
        linear = AddedLinear(own, TORCH, ThreadGroup(meeting, number))
        return torch.stack((linear(x[:, columns]), linear.parts(x[:, columns])[0]))

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(rank, range(2)):
            torch.testing.assert_close(found, truth.expand(2, -1, -1), rtol=1e-10, atol=1e-10)


def test_a_cut_through_a_group_is_refused():
    config = replace(HYBRID, quantization="int4")
    weight = quantize(noise(128, 256), SCHEMES["int4"])
    name = "model.layers.layers.1.mixer.o_proj.weight"
    with pytest.raises(EngineError, match=r"o_proj.* groups of 128 columns.*int8"):
        own_rows_or_columns(config, name, ThreadGroup(Meeting(4), 0), weight)
