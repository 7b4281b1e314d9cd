"""A model that ranks share: the same logits and ids as in one process.

Invariant tested: the equivalence law holds for 2 and 4 ranks, for every set of memory groups,
whatever comes in the middle of a step; what can go wrong between ranks is noticed; what a rank has
is exactly its share. Here the ranks are threads; test_parallel_processes.py has the processes.
"""

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from engines import CONFIGS

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.batching import Rows
from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.fast.graphs import Ladders
from plamo_ref.engine.memory.holding import Copy
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.errors import PlamoRefError
from plamo_ref.kernels.choice import TORCH
from plamo_ref.parallel.cut import check_cut, of_rank, pieces, rule_of
from plamo_ref.parallel.driver import reads_peers
from plamo_ref.parallel.group import LostError
from plamo_ref.parallel.hand import Hand
from plamo_ref.parallel.model import load_random
from plamo_ref.parallel.rank import CopyPlaces, Place, Round, Run, decode, encode
from plamo_ref.parallel.stage import check_stages, is_on, of_stage, widest
from plamo_ref.proof.faults_parallel import PARALLEL_FAULTS
from plamo_ref.proof.lab import (
    Pair,
    Scenario,
    draw_scenario,
    lab_plan,
    least_blocks,
    random_pair,
    random_tensors,
)
from plamo_ref.proof.law import LawError, ScenarioResult, run_scenario
from plamo_ref.proof.ranks import Meeting, ThreadGroup, Threads, threaded_runner
from plamo_ref.proof.sharing import draw_sharing_scenario
from plamo_ref.sampling import SamplingParams
from plamo_ref.weights.random import random_model

# Three Mamba heads cannot be shared.
SHARED = {name: replace(config, mamba_num_heads=4) for name, config in CONFIGS.items()}
HYBRID = SHARED["mamba, sliding and full"]


@cache
def lab(config: Plamo2Config) -> tuple[Pair, dict[str, torch.Tensor]]:
    return random_pair(config), random_tensors(config)


class Reused:
    """Recordings without graphs: their batches, used again and again, and their padding."""

    def __init__(self, runner: ModelRunner, plan: MemoryPlan) -> None:
        self.runner, self.ladders = runner, Ladders(plan, most_tokens=64)
        self.batches: dict[Room, ForwardBatch] = {}
        self.num_replayed = 0

    def place(self, room: Room) -> ForwardBatch | None:
        fixed = self.ladders.room(room)
        if fixed is None:
            return None
        return self.batches.setdefault(fixed, ForwardBatch.empty(fixed, torch.device("cpu")))

    def replay(self, batch: ForwardBatch, rows: Rows) -> torch.Tensor | None:
        if self.batches.get(batch.room) is not batch:
            return None
        self.num_replayed += 1
        model = self.runner.model
        hidden = model.forward(batch, self.runner.caches)
        return model.logits(hidden[rows]) if batch.has_prefills else model.logits(hidden)[rows]


def live(
    scenario: Scenario, config: Plamo2Config, size: int, stages: int = 1, reused: bool = False
) -> ScenarioResult:
    pair, tensors = lab(config)
    runner = threaded_runner(config, tensors, scenario.plan, size, stages)
    for rank in runner.ranks if reused else ():
        rank.recordings = Reused(rank, scenario.plan)
    recordings = [rank.recordings for rank in runner.ranks]
    engine = replace(scenario.engine, pipeline_parallel_size=stages)
    try:
        result = run_scenario(replace(scenario, engine=engine), pair, runner)
    finally:
        runner.close()
    if reused:  # each rank decides for itself, and alike
        replayed = [each.num_replayed for each in recordings]
        assert len({*replayed}) <= stages
        assert min(replayed) > 0
    return result


def drawn(seed: int, config: Plamo2Config) -> Scenario:
    draw = (draw_scenario, draw_sharing_scenario)[seed % 2]
    scenario = draw(random.Random(seed).randint, config)
    # Ranks have two rooms: their parts of a model need not be of one shape.
    return replace(scenario, plan=replace(scenario.plan, pages=None))


# --- the law --------------------------------------------------------------------------------------


def test_the_law_holds_for_every_set_of_memory_groups_and_every_number_of_ranks():
    seen = dict.fromkeys(("preempted", "interrupted", "aborted", "cut", "found", "v0", "v1"), 0)
    shapes = [(2, 1), (4, 1), (1, 2), (2, 2)]
    names = [name for name in SHARED for _ in range(3)]  # each with three shapes of the four
    for seed, name in enumerate(names, 7):
        scenario = drawn(seed, SHARED[name])
        reused = seed // 4 % 2 == 1
        result = live(scenario, SHARED[name], *shapes[seed % 4], reused=reused)
        shares = [share for record in result.records for share in record.scheduled]
        seen[scenario.engine.scheduler] += 1
        seen["preempted"] += result.num_preemptions
        seen["interrupted"] += len(result.interrupted_at)
        seen["aborted"] += sum(r.finish_reason == "abort" for r in result.requests)
        seen["cut"] += sum(s.kind == "prefill" and not s.sampled for s in shares)
        seen["found"] += sum(n > 0 for record in result.records for _, n, _ in record.found)
    assert min(seen.values()) >= 1, seen


@pytest.mark.parametrize("fault", PARALLEL_FAULTS, ids=lambda each: each.name)
def test_a_fault_between_ranks_is_caught(fault):
    lab(HYBRID)
    shape = (2, 2) if {"stage", "stages", "stream"} & {*fault.name.split()} else (4, 1)
    with fault.planted():
        for seed in range(1, 40, 2):  # scenarios that share prompts
            try:
                live(drawn(seed, HYBRID), HYBRID, *shape)
            except LawError:
                break
            except PlamoRefError:
                pass  # it broke down before
        else:
            pytest.fail("nobody noticed")
    live(drawn(seed, HYBRID), HYBRID, *shape)


def test_kernels_add_what_ranks_have_where_that_was_asked_for_and_can_be():
    asked = EngineConfig(tensor_parallel_size=2, disable_custom_all_reduce=False)
    two, one = (ThreadGroup(Meeting(size), 0) for size in (2, 1))
    triton, gpu, cpu = TORCH.but(name="triton"), torch.device("cuda", 0), torch.device("cpu")
    assert reads_peers(asked, two, triton, gpu)
    assert not reads_peers(EngineConfig(tensor_parallel_size=2), two, triton, gpu)
    assert not reads_peers(asked, one, triton, gpu)
    assert not reads_peers(asked, two, TORCH, gpu)
    assert not reads_peers(asked, two, triton, cpu)


# --- what a rank has ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("config", [*SHARED.values(), SHAPES["1b"]], ids=[*SHARED, "1b"])
def test_what_is_cut_is_on_one_rank_and_all_of_it_is_somewhere(config, size):
    for name, shape in config.tensor_shapes.items():
        axis = rule_of(name).axis
        if axis is None:
            continue
        rows = torch.zeros(shape[axis], dtype=torch.int64)
        for rank in range(size):
            for index in pieces(config, name, rank, size):
                rows[index[axis]] += 1
        copied = {"q": 0, "k": size // min(size, config.num_key_value_heads)}
        if name.endswith("k_weight"):
            assert set(rows.tolist()) == {copied["k"]}
        elif name.endswith("qkv_proj.weight"):
            assert set(rows[: config.q_size].tolist()) == {1}
            assert set(rows[config.q_size :].tolist()) == {copied["k"]}
        else:
            assert set(rows.tolist()) == {1}, name


def test_a_rank_of_the_8b_shape_has_its_share_of_heads_states_and_keys():
    whole = SHAPES["8b"]
    rank = of_rank(whole, 1, 4)
    assert (rank.num_attention_heads, rank.num_key_value_heads, rank.mamba_num_heads) == (8, 1, 16)
    assert rank.intermediate_size == 4096
    assert rank.state_bytes() * 4 == whole.state_bytes()
    assert rank.kv_bytes_per_token("sliding_window") * 4 == whole.kv_bytes_per_token(
        "sliding_window"
    )
    one = of_rank(SHAPES["1b"], 1, 4)  # its one KV head is on every rank
    assert one.kv_bytes_per_token("sliding_window") == SHAPES["1b"].kv_bytes_per_token(
        "sliding_window"
    )


def test_random_weights_are_those_of_one_process_cut():
    place = (TORCH, torch.float64, torch.device("cpu"))
    whole = random_model(HYBRID, *place, seed=3)
    groups = [ThreadGroup(Meeting(2), rank) for rank in range(2)]
    shares = [load_random(HYBRID, 3, group, *place) for group in groups]

    def both(of):
        return [of(share) for share in shares]

    stacked = torch.cat(both(lambda m: m.layers[0].mixer.in_proj.weight))
    assert torch.equal(stacked, whole.layers[0].mixer.in_proj.weight)
    side_by_side = torch.cat(both(lambda m: m.layers[2].down_proj.weight), 1)
    assert torch.equal(side_by_side, whole.layers[2].down_proj.weight)
    assert torch.equal(torch.cat(both(lambda m: m.lm_head.weight)), whole.lm_head.weight)
    assert torch.equal(shares[1].embedding, whole.embedding)
    (_, of_last, _, of_first) = ThreadGroup.of_pipeline(2, 2)[1]
    first, last = (load_random(HYBRID, 3, group, *place) for group in (of_first, of_last))
    assert torch.equal(first.embedding, whole.embedding)
    assert torch.equal(last.lm_head.weight, shares[1].lm_head.weight)
    for mine, its in zip([*first.layers, *last.layers], shares[1].layers, strict=True):
        assert torch.equal(mine.gate_up_proj.weight, its.gate_up_proj.weight)


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        ({"mamba_num_heads": 3}, 2, r"size=2: mamba_num_heads \(3\) cannot .* shared by 1$"),
        ({}, 3, r"size=3: num_attention_heads \(4\) cannot be cut into 3 equal .* by 1, 2, 4"),
        ({"intermediate_size": 42}, 4, r"intermediate_size \(42\) cannot .* shared by 1, 2$"),
        (
            {"num_attention_heads": 6, "mamba_num_heads": 3, "intermediate_size": 42},
            3,
            r"num_key_value_heads \(2\) can neither be cut into 3 equal parts nor be copied evenly",
        ),
    ],
    ids=["Mamba heads", "queries", "MLP", "KV heads"],
)
def test_what_cannot_be_cut_is_refused_with_numbers_and_sizes_that_can(changes, size, said):
    with pytest.raises(EngineError, match=said):
        check_cut(replace(HYBRID, **changes), size)


def test_torch_compile_is_for_one_process():
    for size in ("tensor_parallel_size", "pipeline_parallel_size"):
        with pytest.raises(EngineError, match="compile='all' fuses the layers of one process"):
            EngineConfig(compile="all", **{size: 2})


# --- stages ---------------------------------------------------------------------------------------


def layers_of(config: Plamo2Config) -> list[tuple[object, ...]]:
    kinds = enumerate(config.layer_kinds)
    return [(kind, config.window(i), config.theta(i), config.is_mamba(i)) for i, kind in kinds]


@pytest.mark.parametrize("config", SHARED.values(), ids=SHARED)
def test_stages_have_every_layer_once_as_it_is_in_the_whole(config):
    for stages in range(1, config.num_hidden_layers + 1):
        parts = [of_stage(config, stage, stages) for stage in range(stages)]
        assert [layer for part in parts for layer in layers_of(part)] == layers_of(config)
        sizes = [part.num_hidden_layers for part in parts]
        assert max(sizes) - min(sizes) <= 1
        plan = widest(config, stages)
        for kind in ("mamba", "sliding_window", "full"):
            assert len(plan.layers_of(kind)) == max(len(part.layers_of(kind)) for part in parts)


def test_a_stage_reads_its_layers_and_the_tables_of_its_end():
    config = SHARED["attention in the last layer only, untied, a vocabulary that is padded"]
    of = [{n for n in config.tensor_shapes if is_on(config, n, stage, 3)} for stage in range(3)]
    layers = [{n for n in names if ".layers." in n} for names in of]
    assert set.union(*layers) == {n for n in config.tensor_shapes if ".layers." in n}
    assert not layers[0] & layers[1] | layers[1] & layers[2]
    tables = ["model.embed_tokens.weight", "lm_head.weight"]
    assert [names & {*tables} for names in of] == [{tables[0]}, set(), {tables[1]}]
    with pytest.raises(EngineError, match=r"pipeline_parallel_size=4: the model has 3 layers"):
        check_stages(config, 4)


def test_every_stage_has_work_and_no_request_is_in_two_steps():
    """Eight decodes on two stages, four and four; a step lands in the round after its own."""
    _, tensors = lab(HYBRID)
    blocks = {kind: 8 * count for kind, count in least_blocks(HYBRID, 4, 40).items()}
    plan = lab_plan(HYBRID, block_size=4, blocks=blocks, slots=8, max_num_seqs=8)
    shape = {"block_size": 4, "max_num_seqs": 8, "pipeline_parallel_size": 2}
    engine = EngineConfig(dtype="float64", device="cpu", **shape)
    runner = threaded_runner(HYBRID, tensors, plan, 1, 2)
    core = new_core(runner, plan, engine)
    sizes = []
    core.observers.append(lambda record, *_: sizes.append(record.num_tokens))
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    requests = [core.add([1 + n, 2, 3], params) for n in range(8)]
    rounds = 0
    while core.has_work:
        core.step()
        rounds += 1
        new, old = core._under_way
        assert not {*(new.plan.requests if new else ())} & {*(old.plan.requests if old else ())}
    assert sizes == [24, *[4] * 10]
    assert rounds == 13
    assert [len(r.output_ids) for r in requests] == [6] * 8
    runner.close()


# --- orders, and who obeys them -------------------------------------------------------------------


def test_an_order_comes_out_as_it_went_in():
    room = Room(3, 2, 77, (("sliding_window", 4), ("full", 9)), 2)
    for order in (
        Place(room),
        CopyPlaces((Copy("mamba", 1, 2), Copy("full", 5, 4))),
        Run(7, False),
        Round(None),
        Round(Run(3, True), (Copy("mamba", 1, 2),)),
    ):
        line = encode(order)
        assert line.count(b"\n") == 1
        assert decode(line) == order


def test_who_is_interrupted_leaves_nothing_undone():
    """The rest of the work is done, in its order, and the next one gets what it asked for."""
    hand, done = Hand(Threads(Meeting(1), {})), []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("plamo_ref.parallel.hand.wait", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                hand.do(lambda: done.append("begun"))
        assert hand.do(lambda: done.append("next") or len(done)) == 2
        assert done == ["begun", "next"]
    finally:
        hand.stop()


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_rank_that_fails_ends_the_engine_and_is_named():
    config = HYBRID
    scenario = drawn(1, config)
    runner = threaded_runner(config, lab(config)[1], scenario.plan, 2)
    nowhere = [Copy("mamba", 0, 10_000)]
    with pytest.raises(EngineError, match=r"rank [01]: IndexError"):
        runner.copy(nowhere)
    with pytest.raises(EngineError, match=r"rank [01]: IndexError"):
        runner.check()
    runner.close()


def test_the_one_who_is_to_blame_is_named_not_who_lost_him():
    meeting = Meeting(2)
    threads = Threads(meeting, {})
    threads.fail(1, "lost", lost=True)
    threads.fail(0, "out of memory")
    threads.fail(1, "another")
    assert threads.failure == "rank 0: out of memory"
    with pytest.raises(LostError):
        ThreadGroup(meeting, 1).least(3)
