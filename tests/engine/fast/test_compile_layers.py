"""Compiled layers: the same numbers, a graph for each kind of layer and size, nothing late.

Invariant tested: with torch.compile around its layers the engine keeps the law in float64; whole
layers are captured without a break; after the warm-up no step compiles anything, whatever it holds;
operations on the cache change the cache itself, never a copy.
"""

import random
import shutil
from dataclasses import replace

import pytest
import torch
from engines import CONFIGS, new_core, pair
from noise import noise_llm

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.fast import compiling, custom_ops
from plamo_ref.engine.fast.compiling import compile_model
from plamo_ref.engine.fast.custom_ops import compiled_table, opaque, opened
from plamo_ref.kernels.choice import TORCH
from plamo_ref.model import Attention
from plamo_ref.proof.lab import Pair, draw_scenario
from plamo_ref.proof.law import LawError, run_scenario
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES

# The compiler's own imports use what torch.jit has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

NAME = "mamba, sliding and full"
SMALL = "mamba and sliding"  # one kind of attention less to compile
SCENARIOS = 6
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def scenarios(count=SCENARIOS, name=NAME):
    """Those whose memory has no dimension of 1, which the compiler would take for a constant."""
    found = []
    for seed in range(100):
        scenario = draw_scenario(random.Random(seed).randint, CONFIGS[name])
        if scenario.engine.block_size > 1:  # one kind of cache: another is compiled again
            found.append(replace(scenario, plan=replace(scenario.plan, replay=1)))
    return found[:count]


def warm_up(core, sizes=()):
    compiling.warm_up(core.runner.model, core.runner.caches, sizes)


def counters():
    """The compiler's. It takes a second to import, in each process that collects this file."""
    from torch._dynamo import utils

    return utils.counters


def graphs_and_breaks():
    counted = counters()
    return counted["stats"]["unique_graphs"], sum(counted["graph_break"].values())


@pytest.fixture(scope="module")
def compiled():
    """Both models, the served one compiled, and the scenario that made it compile."""
    torch.compiler.reset()
    counters().clear()
    models = Pair(compile_model(pair(NAME).served, "all", ()), pair(NAME).reference)
    run_scenario(scenarios()[0], models)
    return models


# --- the same numbers ----------------------------------------------------------------------------


def test_the_law_holds_with_compiled_layers(compiled):
    """Logits within 1e-10 of the reference, whatever the chunks, company and preemptions."""
    steps = sum(len(run_scenario(scenario, compiled).records) for scenario in scenarios())
    assert steps > 50


def test_a_wrong_fused_operation_breaks_the_law(monkeypatch):
    def wrong(kernels):
        return compiled_table(kernels).but(
            add_norm=lambda r, x, p, g, eps, quantize: TORCH.add_norm(r, x, p, g, 0.1)
        )

    monkeypatch.setattr(compiling, "compiled_table", wrong)
    model = compile_model(pair("sliding").served, "all", ())
    with pytest.raises(LawError, match="a logit is off"):
        run_scenario(scenarios(1, "sliding")[0], Pair(model, pair("sliding").reference))


def test_compiled_attention_alone_keeps_the_law_and_leaves_mamba_as_it_was():
    plain = pair(SMALL).served
    model = compile_model(plain, "attention", ())
    assert plain.compiled is None
    _, calls = model.compiled(batches()[0])
    for mine, its in zip(calls, plain.layers, strict=True):
        assert (mine is its) != isinstance(its.mixer, Attention)
    run_scenario(scenarios(1, SMALL)[0], Pair(model, pair(SMALL).reference))


PROMPTS = ["吾輩は猫である。", "It was the best of times, it was the worst of"]


@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_an_engine_with_compile_writes_the_same_text(quantization):
    """Its layers are those of the law, whose graphs the compiler knows by now."""
    texts = []
    for choice in ("none", "all"):
        with noise_llm(quantization=quantization, compile=choice) as llm:
            assert (llm.core.runner.model.compiled is None) == (choice == "none")
            texts.append([r.outputs[0].token_ids for r in llm.generate(PROMPTS, GREEDY)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", SCHEMES)
def test_the_box_of_a_quantized_product_computes_it_and_takes_plain_activations(name):
    x, weight = torch.randn(3, 256), quantize(torch.randn(64, 256), SCHEMES[name])
    box = compiled_table("torch")
    given = TORCH.quantize_tokens(x) if weight.quantized_activations else x
    for operation in ("quantized_linear", "quantized_linear_parts", "quantized_linear_swiglu"):
        got = getattr(box, operation)(box.quantize_tokens(x), weight)
        assert torch.equal(got, getattr(TORCH, operation)(given, weight))
    gain = torch.ones(256)
    for table in (box, TORCH):  # who would quantize leaves it to the box
        plain = isinstance(table.add_norm(x, x, gain, gain, 1e-6, True)[1], torch.Tensor)
        assert plain == (table is box)


# --- whole graphs, and no more of them than needed -----------------------------------------------


def test_each_kind_of_layer_is_one_graph_a_size_and_none_has_a_break(compiled):
    """Three kinds (Mamba, sliding, full), each for one token and for any other number."""
    torch.compiler.reset()
    counters().clear()
    models = Pair(compile_model(pair(NAME).served, "all", ()), pair(NAME).reference)
    layers = len(models.config.layer_kinds)
    run_scenario(scenarios()[0], models)
    assert graphs_and_breaks() == (6, 0)
    assert layers > 3  # so that sharing is worth something


def compiled_core(what="all", sizes=(), name=NAME):
    """A small engine, by default with all three kinds of layers; nothing is compiled yet."""
    core = new_core(CONFIGS[name])
    core.runner.model = compile_model(core.runner.model, what, sizes)
    return core


def run_requests(core):
    """Requests that come one step after the other; returns the numbers of tokens of the steps."""
    tokens = []
    core.observers.append(lambda record, *_: tokens.append(record.num_tokens))
    for length in (5, 1, 17, 9):
        core.add(list(range(1, 1 + length)), GREEDY)
        core.step()
    while core.has_work:
        core.step()
    return tokens


def test_after_the_warm_up_no_step_compiles_anything():
    core = compiled_core()
    warm_up(core)
    before = graphs_and_breaks()
    with torch.compiler.set_stance("fail_on_recompile"):
        tokens = run_requests(core)
    assert graphs_and_breaks() == before
    assert len(set(tokens)) > 3, tokens


def test_without_the_warm_up_the_first_step_would_compile():
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError):
        run_requests(compiled_core())


def test_a_listed_size_gets_a_graph_in_which_it_is_a_number():
    sizes = (4, 7, 4)
    core = compiled_core("attention", sizes, SMALL)
    before = graphs_and_breaks()[0]
    warm_up(core, sizes)
    assert graphs_and_breaks()[0] - before == 1 + 2 + 1  # 1; 4 and 7; any


# --- operations on the cache ---------------------------------------------------------------------


def batches():
    """Batches of an engine: mixed ones, decodes alone, prefills alone."""
    core, seen = new_core(enable_prefix_caching=True), []
    inner = core.runner.run
    core.runner.run = lambda batch, rows: (seen.append(batch), inner(batch, rows))[1]
    run_requests(core)
    return seen


def test_what_an_operation_opens_is_the_batch():
    seen = batches()
    parts = {(batch.num_decodes > 0, batch.has_prefills) for batch in seen}
    assert parts == {(True, False), (False, True), (True, True)}
    assert {batch.room.photographs > 0 for batch in seen} == {False, True}
    for batch in seen:
        closed = opaque(batch)
        again = opened(closed.vector, closed.counts)
        assert again.room == batch.room
        assert again.vector is batch.vector


def test_the_operations_change_the_cache_itself(monkeypatch):
    """A graph that changed a copy and copied it back would be right and slow."""
    core, seen = compiled_core(), set()

    def spy(inner, caches_of):
        def spied(*args):
            seen.update(tensor.data_ptr() for tensor in caches_of(args))
            return inner(*args)

        return spied

    monkeypatch.setattr(TORCH, "convolve", spy(TORCH.convolve, lambda args: [args[3]]))
    monkeypatch.setattr(TORCH, "scan", spy(TORCH.scan, lambda args: [args[3].ssm]))
    monkeypatch.setattr(TORCH, "attend", spy(TORCH.attend, lambda args: vars(args[4]).values()))
    run_requests(core)
    own = {t.data_ptr() for cache in core.runner.caches for t in vars(cache).values()}
    assert seen == own


def test_the_operations_are_what_they_say_to_the_compiler():
    """Schemas, what is mutated, and the shapes of results: torch's own check."""
    packed = opaque(batches()[-1])
    place, tokens = (packed.vector, packed.counts), len(packed.token_ids)
    heads, size, state = 3, 4, 5

    def random_of(*shape):
        return torch.randn(shape, dtype=torch.float64)

    keys, values = random_of(40, 4, 2, size), random_of(40, 4, 2, size)
    kv = (random_of(tokens, 2, size), random_of(tokens, 2, size))
    slots = packed.groups["full"].slot_mapping
    torch.library.opcheck(custom_ops.write_kv, (*kv, keys, values, slots))
    q = random_of(tokens, 4, size)
    torch.library.opcheck(custom_ops.attend_op, (q, keys, values, *place, "full", None, "torch"))
    conv = random_of(20, heads * size, 3)
    inputs = (random_of(tokens, heads, size), random_of(heads * size, 4))
    torch.library.opcheck(custom_ops.convolve_op, (*inputs, conv, *place, "torch"))
    u, z, B, C = (
        *(random_of(tokens, heads, size) for _ in "uz"),
        *(random_of(tokens, state) for _ in "BC"),
    )
    per_head = [random_of(heads) for _ in ("A", "D", "bias")]
    cache = random_of(20, heads, size, state)
    given = (u, z, random_of(tokens, heads), B, C, *per_head)
    none, k = (None, None, None), 3
    torch.library.opcheck(custom_ops.scan_op, (*given, cache, None, *none, False, *place, "torch"))
    narrow = cache.to(torch.int8), torch.rand(20, heads), *none, True
    torch.library.opcheck(custom_ops.scan_op, (*given, *narrow, *place, "torch"))
    ring = random_of(20, heads, k, size), random_of(20, k, state), random_of(20, heads, k).exp()
    torch.library.opcheck(custom_ops.scan_op, (*given, cache, None, *ring, False, *place, "torch"))


# --- settings ------------------------------------------------------------------------------------


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="'no-such-compiler' was not found: install one"):
        LLM("tiny", device="cpu", memory_bytes=1 << 26, compile="all")
    assert LLM("tiny", device="cpu", memory_bytes=1 << 26).core  # compile="none" needs none


def test_the_default_compiler_is_looked_for_by_its_name(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EngineError, match='or use compile="none"'):
        compile_model(pair(NAME).served, "attention", ())


@pytest.mark.parametrize(
    "wrong", [{"compile": "everything"}, {"compile": True}, {"compile_sizes": (8, 0)}]
)
def test_an_impossible_setting_is_named(wrong):
    with pytest.raises(EngineError, match=next(iter(wrong))):
        EngineConfig(**wrong)
