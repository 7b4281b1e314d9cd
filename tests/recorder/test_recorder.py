"""A recorded run says what the engine's own books said, step by step, and is read back whole."""

import json
from dataclasses import replace

import pytest

from plamo_ref import LLM, SamplingParams
from plamo_ref.cli import main
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.core import EngineCore
from plamo_ref.recorder.recorder import VERSION, Header, recording
from plamo_ref.recorder.run import RunError, read_run, read_runs

PROMPTS = [[20] * 9 + [n] * (3 + 2 * n) for n in range(5)]
ENGINE = {"device": "cpu", "block_size": 4, "max_num_seqs": 3, "max_num_batched_tokens": 12}


@pytest.fixture(scope="module")
def llm():
    with LLM("tiny", memory_bytes=1_400_000, enable_prefix_caching=False, **ENGINE) as opened:
        yield opened


def params(count):
    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)


def books(core):
    """Who holds which places, read from the cache itself."""
    holdings = core.cache.holdings
    tables = {
        kind: {name: tuple(held.tables[kind].blocks) for name, held in holdings.items()}
        for kind in core.cache.blocks
    }
    return tables, {name: held.slot for name, held in holdings.items()}


def drive(core, prompts=PROMPTS):
    """Requests that come two steps apart, one of whom hangs up. Returns the engine's own
    records and, for each step, its books."""
    told, seen, run = [], [], core.runner.run

    def look(*step):  # the batch is built, and nobody has left yet
        seen.append(books(core))
        return run(*step)

    def keep(record, *_):
        told.append(record)

    core.runner.run = look
    core.observers.append(keep)
    for i, prompt in enumerate(prompts):
        core.add(prompt, params(4 + 3 * i), request_id=f"r{i}")
        core.step()
        core.step()
    core.finish("r3")
    while core.has_work:
        core.step()
    core.observers.remove(keep)
    del core.runner.run
    return told, seen


@pytest.mark.parametrize(
    "changes", [{}, {"scheduler": "v0", "chunk_size": 6}, {"overlap": True}], ids=str
)
def test_a_replay_says_what_the_books_said(tmp_path, changes):
    file = tmp_path / "run.jsonl"
    with LLM("tiny", memory_bytes=1_400_000, record=file, **ENGINE, **changes) as llm:
        told, seen = drive(llm.core)
        header = Header.of(llm.core)
    run = read_run(file)
    assert run.header == header
    assert run.records == tuple(told)
    assert run.requests[:2] == ("r0", "r1")
    assert [(dict(m.blocks), dict(m.slots)) for m in run.moments] == seen
    for moment in run.moments:
        used = {kind: len(moment.owners(kind)) for kind in moment.blocks}
        assert used == moment.record.blocks_used
        assert {s.request_id for s in moment.record.scheduled} <= {*moment.running}
        assert not {*moment.running} & {*moment.waiting}


def test_a_preempted_request_holds_nothing_until_it_is_back(llm, tmp_path):
    file = tmp_path / "run.jsonl"
    plan = replace(llm.plan, num_blocks=llm.plan.num_blocks | {"full": 1 + 5})
    core = EngineCore(llm.core.runner, plan, llm.config)
    with recording(core, file):
        told, seen = drive(core, [[30 + n] * 8 for n in range(3)])
    run = read_run(file)
    assert any(record.preempted for record in told)
    assert [(dict(m.blocks), dict(m.slots)) for m in run.moments] == seen


def test_a_window_that_slides_is_followed(llm, tmp_path):
    file = tmp_path / "run.jsonl"
    with recording(llm.core, file):
        _, seen = drive(llm.core, [[20 + n] * 80 for n in range(2)])
    run = read_run(file)
    assert [(dict(m.blocks), dict(m.slots)) for m in run.moments] == seen
    firsts = {m.blocks["sliding_window"]["r1"][0] for m in run.moments if "r1" in m.slots}
    assert len(firsts) > 1  # blocks have left at the front


def test_what_is_kept_of_texts_is_recorded(tmp_path):
    file = tmp_path / "run.jsonl"
    engine = ENGINE | {"enable_prefix_caching": True, "record": str(file)}
    with LLM("tiny", memory_bytes=4_000_000, **engine) as llm:
        llm.generate([PROMPTS[0]], params(3), use_tqdm=False)
        llm.generate([PROMPTS[0] + [7, 8]], params(3), use_tqdm=False)
        kept = {(c.position, c.holding.slot) for c in llm.core.queues.prefix.kept}
    run = read_run(file)
    last = run.moments[-1]
    recorded = {(node.position, node.slot) for node in last.tree if node.is_kept}
    assert recorded
    assert recorded <= kept | {(node.position, node.slot) for node in last.tree}
    assert all(node.parent < place for place, node in enumerate(last.tree))
    assert last.kept("full")
    (found,) = last.record.found or run.moments[-3].record.found
    assert found[1] > 0  # the second prompt began where the first had been


def test_recording_ends_with_its_block_and_another_may_begin(llm, tmp_path):
    file = tmp_path / "run.jsonl"
    for count in (3, 5):
        with recording(llm.core, file):
            llm.generate([PROMPTS[1]], params(count), use_tqdm=False)
        llm.generate([PROMPTS[1]], params(2), use_tqdm=False)  # nobody writes this down
    assert [len(run.moments) for run in read_runs(file)] == [4, 6]  # the prompt takes two
    assert len(read_run(file).moments) == 6
    assert not llm.core.observers
    assert llm.core.cache.witness is None


def test_a_file_has_one_writer(llm, tmp_path):
    file = tmp_path / "run.jsonl"
    with recording(llm.core, file), pytest.raises(EngineError, match="another engine is writing"):
        LLM("tiny", record=file, memory_bytes=1_000_000, **ENGINE)
    missing = recording(llm.core, tmp_path / "nowhere" / "run.jsonl")
    with pytest.raises(EngineError, match=r"record='.*nowhere.*No such file"), missing:
        pass


def test_a_full_disk_ends_the_record_and_not_the_text(llm):
    wanted = llm.generate([PROMPTS[2]], params(4), use_tqdm=False)[0].outputs[0].token_ids
    with pytest.warns(UserWarning, match="recording has ended"), recording(llm.core, "/dev/full"):
        output = llm.generate([PROMPTS[2]], params(4), use_tqdm=False)[0].outputs[0]
    assert output.token_ids == wanted
    assert not llm.core.observers


def test_what_a_killed_engine_left_is_read_and_what_is_damaged_is_not(llm, tmp_path):
    file = tmp_path / "run.jsonl"
    with recording(llm.core, file):
        llm.generate([PROMPTS[1]], params(4), use_tqdm=False)
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert len(read_run(file).moments) == 4  # of five
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], lines[2][:40] + b"\n", *lines[3:]]))
    with pytest.raises(RunError, match="line 3: not a step of a run"):
        read_run(file)
    file.write_bytes(b"".join(lines[1:]))
    with pytest.raises(RunError, match="line 1"):
        read_run(file)
    newer = json.loads(lines[0]) | {"version": VERSION + 1}
    file.write_text(json.dumps(newer, separators=(",", ":")) + "\n")
    with pytest.raises(RunError, match=f"plamo-ref run {VERSION + 1}; this version reads"):
        read_run(file)
    file.write_bytes(b"")
    with pytest.raises(RunError, match="no recorded run"):
        read_run(file)
    with pytest.raises(RunError, match="No such file"):
        read_run(tmp_path / "none")


def test_the_command_line_records(tmp_path, capsys):
    file = tmp_path / "run.jsonl"
    words = ["generate", "--prompt", "むかし", "--max-tokens", "5", "--device", "cpu"]
    assert main([*words, "--record", str(file)]) == 0
    capsys.readouterr()
    assert len(read_run(file).moments) == 5


def test_record_is_a_flag_or_a_file():
    assert EngineConfig(record=True).record is True
    assert EngineConfig().record is None
    with pytest.raises(EngineError, match="record must be True, False or the name of a file"):
        EngineConfig(record=3)
    with pytest.raises(EngineError, match="record must be"):
        EngineConfig(record="")
