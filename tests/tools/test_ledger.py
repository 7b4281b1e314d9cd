"""The ledger: every recorded result in a table or a picture, beside the card that gave it.

Invariant tested: docs/ledger.md, its pictures and README.md's table say what notebooks/recorded
says; a changed record, a changed word and an old picture are noticed.
"""

import json
import shutil
from pathlib import Path

import pytest

from plamo_ref.teaching.recorded import RecordedError
from tools.ledger.__main__ import DOCS, RECORDED, with_peer_table
from tools.ledger.ablation import bought
from tools.ledger.page import SECTIONS, page
from tools.ledger.peer import README_ROWS, gain, readme_table
from tools.ledger.plots import PLOTS, digest_of, png
from tools.ledger.records import files_of, read_record
from tools.ledger.table import Column, percent, table
from tools.ledger.tables import TABLES
from tools.marks import fill

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
STALE = "run: python -m tools.ledger"
# Records that a lesson shows and the ledger does not: they compare two ways within one lesson.
OF_A_LESSON = {
    "inductor_triton",
    "gpu_attention_ramp",
    "gpu_mamba_ramp",
    "gpu_prompts_8b_launched",
    "cache_quality",  # a lesson draws it: series, no table
    "gpu_prompts_8b_recorded",
    "gpu_server_8b_launched",
}
DECODE = {
    "model": "8b",
    "state_dtype": "bfloat16",
    "cuda_graphs": True,
    "batch": 32,
    "step_ms": 5.4321,
    "percent_of_floor": 85.2,
    "products_ms": 5.05,
}
STARTUP = {"model": "8b", "cache": "cold", "precompile": True, "to_first_token_s": 17.26}
OFF = {"model": "8b", "batch": 1, "step_ms": 4.6, "instead": "everything is on", "off": "nothing"}
OFF |= {"spread_ms": 0.1, "buys_ms": 0.0}
KERNEL = {"shape": "8B", "operation": "add_norm", "case": "7", "us": 2, "percent_of_floor": 91.4}
LOAD = {"model": "tiny", "what": "load", "requests_per_s": 4.0, "ttft_ms": {"p50": 9.7, "p99": 20}}


def record(folder, name, rows, machine="NVIDIA H100"):
    result = {"machine": machine, "versions": {"torch": "2.11"}, "date": "2026-11-24"}
    (folder / f"{name}.json").write_text(json.dumps(result | {"command": "redo it", "data": rows}))


@pytest.fixture(scope="module")
def drawn():
    return {name: plot.draw(plot.data(RECORDED)) for name, plot in PLOTS.items()}


@pytest.fixture(scope="module")
def alts(drawn):
    return {name: alt for name, (_, alt) in drawn.items()}


# --- what is committed is what the records say ---------------------------------------------------


def test_the_page_is_what_the_records_say(alts):
    assert (DOCS / "ledger.md").read_text(encoding="utf-8") == page(RECORDED, alts), STALE


def test_the_readme_is_what_the_record_says():
    assert with_peer_table(README) == README, STALE


@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_was_drawn_from_the_records_as_they_are(name):
    assert digest_of(DOCS / f"ledger_{name}.png") == PLOTS[name].digest(RECORDED), STALE


def test_no_picture_is_left_over():
    there = {path.stem.removeprefix("ledger_") for path in DOCS.glob("ledger_*.png")}
    assert there == set(PLOTS) == {section.plot for section in SECTIONS if section.plot}


def test_every_record_is_in_one_section_or_of_a_lesson():
    shown = [name for section in SECTIONS for name in section.records]
    assert sorted(shown) == sorted(TABLES)
    there = {path.stem for path in RECORDED.glob("*.json")}
    assert there - {path.stem for name in shown for path in files_of(name, RECORDED)} == OF_A_LESSON


def test_a_changed_record_changes_page_and_digest(tmp_path, alts):
    folder = tmp_path / "recorded"
    shutil.copytree(RECORDED, folder)
    path = folder / "gpu_decode_8b.json"
    path.write_text(path.read_text().replace('"step_ms": 6.675', '"step_ms": 5.555'))
    assert page(folder, alts) != page(RECORDED, alts)
    assert "| 5.55 |" in page(folder, alts) or "| 5.56 |" in page(folder, alts)
    assert PLOTS["decode"].digest(folder) != PLOTS["decode"].digest(RECORDED)


def test_a_picture_keeps_its_digest(tmp_path, drawn):
    (tmp_path / "one.png").write_bytes(png(drawn["server"][0], "abc"))
    assert digest_of(tmp_path / "one.png") == "abc"


# --- what is drawn is what was measured ----------------------------------------------------------


def test_lines_are_the_measured_ones(drawn):
    figure, alt = drawn["decode"]
    rows = read_record(RECORDED / "gpu_decode_1b.json").rows
    measured, floor = figure.axes[1].lines[:2]
    assert list(measured.get_ydata()) == [row["step_ms"] for row in rows]
    assert list(floor.get_ydata()) == [row["floor_ms"] for row in rows]
    assert all(f"{row['batch']}: {row['step_ms']:.1f} ms" in alt for row in rows)


def test_bars_are_the_measured_ones(drawn):
    figure, alt = drawn["ablation"]
    rows = read_record(RECORDED / "gpu_ablation_8b.json").rows
    for ax in figure.axes:
        batch = int(ax.get_title().removeprefix("batch "))
        longer = [r["buys_percent"] for r in rows if r["batch"] == batch and r["off"] != "nothing"]
        assert sorted(bar.get_width() for bar in ax.patches) == sorted(longer)
    assert "graphs +161 % / +126 % / (+25 %)" in alt


def test_what_lies_within_the_scatter_is_in_brackets():
    rows = [
        {"off": off, "batch": 1, "spread_ms": spread, "buys_ms": buys, "buys_percent": 10 * buys}
        for off, spread, buys in (("nothing", 0.3, 0.0), ("a", 0.1, 0.31), ("b", 0.1, -0.3))
    ]
    assert [bought(row, rows) for row in rows[1:]] == ["+3 %", "(-3 %)"]
    rows[1]["spread_ms"] = 0.4  # its own runs scatter
    assert bought(rows[1], rows) == "(+3 %)"


def test_the_peers_picture_has_a_point_a_comparison(drawn):
    figure, alt = drawn["peer"]
    rows = read_record(RECORDED / "gpu_peer.json").rows
    gains = {gain(row) for row in rows if row["what"] != "server"}
    for ax in figure.axes:
        points = list(ax.lines[0].get_xdata())
        assert set(points) <= gains
        assert len(points) == len(ax.get_yticks()) >= 9
    assert "decode, batch 1: 1.26×" in alt


def test_alt_texts_are_one_line_and_no_text_is_small(drawn):
    for figure, alt in drawn.values():
        assert "\n" not in alt
        assert "]" not in alt
        for ax in figure.axes:
            texts = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.title]
            assert min(text.get_fontsize() for text in texts) >= 11


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        (
            "gpu_decode_8b_bf16",
            [DECODE],
            [
                "**8B shape, bfloat16 state**",
                "| batch | ms a step | of the floor's speed | the library's products alone, ms |",
                "| 32 | 5.43 | 85 % | 5.05 |",
            ],
        ),
        ("gpu_decode_8b", [DECODE | {"cuda_graphs": False}], ["state, no CUDA graphs**"]),
        (
            "gpu_startup_8b",
            [STARTUP, STARTUP | {"precompile": False}],
            [
                "| cold | before the first request | 17.3 |",
                "| cold | each when first launched | 17.3 |",
            ],
        ),
        (
            "gpu_ablation_8b",
            [OFF, OFF | {"off": "qk", "instead": "apart", "buys_ms": 0.2, "buys_percent": 4.6}],
            ["| nothing | everything is on | 4.60 ms |", "| qk | apart | +5 % |"],
        ),
        (
            "gpu_kernels",
            [KERNEL, KERNEL | {"case": "1", "percent_of_floor": 50.0}],
            ["| `add_norm` | 7 | 2.0 | 91 % |"],
        ),
        (
            "gpu_prefill_1b",
            [{"model": "1b", "batch": 4, "prompt_len": 2048, "seconds": 0.5, "tokens_per_s": 9e4}],
            ["| 4 × 2,048 | 500.0 | 90,000 |"],
        ),
        (
            "gpu_mixed_1b",
            [{"model": "1b", "seconds": 1.5, "percent_of_floor": 42.0}],
            ["| all of it, s | of the floor's speed |", "| 1.50 | 42 % |"],
        ),
        ("server", [LOAD], ["**tiny model behind the server: by load**", "| 4 | 10 | 20 |"]),
    ],
)
def test_each_result_is_a_table_beside_its_card(tmp_path, name, rows, said):
    record(tmp_path, name, rows)
    text = page(tmp_path, dict.fromkeys(PLOTS, "a picture"))
    assert [words for words in said if words not in text] == []
    assert "NVIDIA H100, torch 2.11, 2026-11-24: `redo it`.\n" in text
    assert text.count("\n## ") == 1  # a subject without records is left out


def test_a_column_without_values_is_left_out_and_numbers_stand_to_the_right():
    columns = (Column("name", "n"), Column("p50", "ms.p50", "{:.1f}"), Column("none", "x.y"))
    said = table("", [{"n": "one", "ms": {"p50": 1.25}}, {"n": "two"}], *columns).markdown()
    assert said.splitlines() == [
        "| name | p50 |",
        "| --- | ---: |",
        "| one | 1.2 |",
        "| two |  |",
    ]


def test_zero_percent_has_no_sign():
    assert [percent(x) for x in (-0.3, 0.4, 4.6, -17.1)] == ["0 %", "0 %", "+5 %", "-17 %"]


def test_every_comparison_says_for_both_engines_what_it_compares():
    both = read_record(RECORDED / "gpu_peer.json")
    assert {"vLLM", "plamo-ref", "attention"} <= set(both.conditions)
    assert len(readme_table(both.rows).rows) == len(README_ROWS)
    decode = [r for r in both.rows if r["what"] == "decode" and r["state_dtype"] == "bfloat16"]
    shown = [gain(r) for r in decode if r["model"] == "8b"]
    assert (f"{min(shown):.2f}", f"{max(shown):.2f}") == ("1.25", "1.31")


# --- files ---------------------------------------------------------------------------------------


def test_the_same_measured_on_two_cards_is_two_tables(tmp_path):
    record(tmp_path, "gpu_decode_8b", [DECODE])
    record(tmp_path, "gpu_decode_8b_h200", [DECODE], "NVIDIA H200")
    record(tmp_path, "gpu_decode_8b_plain", [DECODE], "not this")
    found = files_of("gpu_decode_8b", tmp_path)
    assert [path.stem for path in found] == ["gpu_decode_8b", "gpu_decode_8b_h200"]
    text = page(tmp_path, dict.fromkeys(PLOTS, "a picture"))
    assert text.count("| 32 | 5.43 |") == 2
    assert text.count("NVIDIA H200, torch") == 1


def test_what_is_not_a_card_is_another_result(tmp_path):
    for name in ("mixed_h100", "mixed_bf16", "mixed_8b", "mixed_h1", "mixed_a100x"):
        record(tmp_path, name, [])
    assert [path.stem for path in files_of("mixed", tmp_path)] == ["mixed_h100"]


def test_a_record_without_its_origin_is_refused(tmp_path):
    record(tmp_path, "mixed", [{"steps": 1}], machine="")
    with pytest.raises(RecordedError, match="machine missing"):
        read_record(tmp_path / "mixed.json")


def test_a_text_without_a_place_is_refused():
    for text in ("# nothing here", "<!-- a -->\nno end", "<!-- end -->"):
        with pytest.raises(ValueError, match="no place to fill"):
            fill(text, "a", "table")
    assert fill("x\n<!-- a -->\nold\n<!-- end -->\ny", "a", "new") == (
        "x\n<!-- a -->\nnew\n<!-- end -->\ny"
    )
