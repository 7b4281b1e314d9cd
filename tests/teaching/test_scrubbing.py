"""The picture of a recorded step says what the run says, in colours, letters and words."""

from dataclasses import replace

import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from plamo_ref import LLM, SamplingParams
from plamo_ref.recorder.run import read_run
from plamo_ref.teaching.panels import letters
from plamo_ref.teaching.scrubbing import film, frame, scrub

TEXTS = [[20] * 9 + [n] * 3 for n in range(4)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = []
    for scheduler in ("v0", "v1"):
        file = tmp_path_factory.mktemp(scheduler) / "run.jsonl"
        sizes = {"block_size": 4, "max_num_seqs": 2, "max_num_batched_tokens": 16}
        memory = {"memory_bytes": 3_000_000, "enable_prefix_caching": True}
        with LLM("tiny", device="cpu", record=file, scheduler=scheduler, **sizes, **memory) as llm:
            params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
            llm.generate(TEXTS, params, use_tqdm=False)
        found.append(read_run(file))
    return found


def titles(fig):
    return [ax.get_title(loc="left") for ax in fig.axes]


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_a_frame_says_what_the_run_says(runs, step):
    fig, alt = frame(runs, step)
    assert "\n" not in alt
    count = len(fig.axes) // len(runs)
    for column, run in enumerate(runs):
        moment = run.moments[min(step, len(run.moments)) - 1]
        record, mine = moment.record, titles(fig)[column * count :][:count]
        assert f"step {record.step + 1} of {len(run.moments)}" in mine[0]
        assert mine[1] == f"budget: {record.num_tokens} of 16 tokens"
        assert (
            mine[2] == f"running: {len(moment.running)} of 2 seats · waiting: {len(moment.waiting)}"
        )
        assert f"full blocks: {record.blocks_used['full']} in use" in " ".join(mine)
        assert f"state slots: {record.slots_used} in use" in " ".join(mine)
        assert f"{record.num_tokens} of 16 tokens" in alt
    timed = [ax.get_title(loc="right") for ax in fig.axes if ax.get_title(loc="right")]
    last = runs[-1].moments[min(step, len(runs[-1].moments)) - 1].record
    assert timed[-1] == f"{1000 * last.total_seconds:,.1f} ms"
    plain, _ = frame(runs, step, times=False)
    assert not any(ax.get_title(loc="right") for ax in plain.axes)


def test_a_block_shows_the_letter_of_its_owner(runs):
    step = next(i for i, m in enumerate(runs[1].moments) if len(m.running) == 2)
    moment = runs[1].moments[step]
    fig, _ = frame(runs[1:], step + 1)
    ax = next(ax for ax in fig.axes if ax.get_title(loc="left").startswith("full blocks"))
    known = letters(runs[1].requests)
    wanted = [
        known[names[0]] if len(names) == 1 else "+"
        for _, names in sorted(moment.owners("full").items())
    ]
    assert [text.get_text() for text in ax.texts] == wanted
    cells = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert len({cell.get_facecolor() for cell in cells}) >= 3  # two requests, and nobody


def test_a_film_has_a_picture_for_each_step(runs, tmp_path):
    file = tmp_path / "run.gif"
    film([replace(runs[1], moments=runs[1].moments[:3])], file)
    with Image.open(file) as moving:
        assert moving.n_frames == 3


def test_there_must_be_something_to_scrub(runs, capsys):
    with pytest.raises(ValueError, match="at least one step"):
        scrub()
    scrub(*runs, step=2)
    assert "V0 step 2 of" in capsys.readouterr().out
