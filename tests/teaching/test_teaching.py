"""What the notebooks share: check(), figures, sliders, recorded results, the runner."""

import ast
import importlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from plamo_ref.bench.shapes import SHAPES
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.memory.radix import Node, insert
from plamo_ref.teaching import (
    CheckFailed,
    RecordedError,
    bars,
    check,
    check_exercise,
    check_that,
    drawable,
    figure,
    figures,
    frames,
    gantt,
    interactive,
    label,
    layer_strip,
    lines,
    mask_heatmap,
    recorded,
    show,
    style_of,
    thermometer,
    write_recorded,
)
from plamo_ref.teaching.diagrams import stacks
from plamo_ref.teaching.figures import MAX_SVG_BYTES, SERIES, png, svg
from plamo_ref.teaching.shards import layers_map
from plamo_ref.teaching.trees import prefix_tree
from plamo_ref.teaching.widgets import default_of, panel
from tools.course.execute import execute

# By name: the package's attribute of this name is the function.
figures_module = importlib.import_module("plamo_ref.teaching.figures")
widgets_module = importlib.import_module("plamo_ref.teaching.widgets")

CONFIG = Plamo2Config(hidden_size=64, num_hidden_layers=20, full_attention_idx=(3, 19))


def some_texts() -> Node[bool]:
    """Three texts, two of which part in the middle of the third; a moment is kept at two ends."""
    root: Node[bool] = Node()
    for text in ((1, 2, 3, 4), (1, 2, 9), (1, 2, 3, *range(200, 240))):
        end = insert(root, text)
        end.kept = True if len(text) != 3 else None
    return root


DIAGRAMS = {
    "layer_strip": lambda: layer_strip(CONFIG),
    "mask": lambda: mask_heatmap(torch.ones(5, 5).tril().bool(), title="causal"),
    "large mask": lambda: mask_heatmap(np.tri(40, dtype=bool)),
    "frames": lambda: frames([("pool", [("0", "used"), ("1", "free")]), ("hit", [("2", "hit")])]),
    "gantt": lambda: gantt([("p1", 1, 9, "prefill"), ("p2", 3, 1, "decode")], budget=10),
    "bars": lambda: bars({"ours": 1.5, "theirs": 3.0}, ylabel="ms"),
    "grouped bars": lambda: bars({"a": [1, 2], "b": [2, 3]}, groups=["x", "y"], log=True),
    "lines": lambda: lines([1, 2, 4], {"a": [1, 2, 3], "b": [3, 2, 1]}, logx=True, logy=True),
    "thermometer": lambda: thermometer(["a", "b"], [0.0, 1e-3], 1),
    "stacks": lambda: stacks({"a": {"1": [2, 0], "2": [1, 1]}}, ("x", "y")),
    "shards": lambda: layers_map(SHAPES["1b"], 2),
    "tree": lambda: prefix_tree(some_texts()),
}


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What goes to the front end: (data, metadata) of each display."""
    sent: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def display(data: dict[str, Any], *, raw: bool, metadata: Any = None) -> None:
        assert raw
        sent.append((data, metadata or {}))

    monkeypatch.setattr("IPython.display.display", display)
    return sent


# --- check ---------------------------------------------------------------------------------------

EQUAL = [
    (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-6]), "within 1e-05"),
    (torch.ones(2, dtype=torch.float64), np.ones(2), "within 1e-10"),
    (torch.ones(2, dtype=torch.bfloat16), torch.ones(2) + 0.01, "within 2e-02"),
    (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), "within 1e-05"),
    (torch.arange(3), torch.arange(3), "equal"),
    (torch.arange(3), [0, 1, 2], "equal"),
    ([[1, 2], [3]], [[1, 2], [3]], "equal"),
    ({"a": [1, 2], "b": "x"}, {"a": [1, 2], "b": "x"}, "equal"),
    ([torch.ones(2), torch.zeros(1)], [torch.ones(2), torch.zeros(1)], "within 1e-05"),
    ("text", "text", "equal"),
    (True, True, "equal"),
    (None, None, "equal"),
    (0.1 + 0.2, 0.3, "within 1e-10"),
    (np.float32(1), 1.0, "within 1e-05"),
    ([], [], "equal"),
]


@pytest.mark.parametrize(("got", "expected", "shown"), EQUAL)
def test_a_right_step_prints_one_line(
    capsys: pytest.CaptureFixture[str], got: Any, expected: Any, shown: str
) -> None:
    check("step", got, expected)
    assert capsys.readouterr().out == f"✓ step ({shown})\n"


DIFFERENT = [
    (torch.ones(2, 3), torch.ones(3, 2), r"shape \[2, 3\], expected \[3, 2\]"),
    (torch.ones(2), torch.ones(2).long(), "dtype float32, expected int64"),
    (torch.ones(2).bool(), torch.ones(2).long(), "dtype bool, expected int64"),
    (True, 1, "dtype bool, expected int"),
    (
        torch.tensor([[0.0, 1.0], [2.0, 7.0]]),
        torch.tensor([[0.0, 1.0], [2.5, 3.0]]),
        r"first at \[1, 0\]: got 2, expected 2.5; 2 of 4 differ; largest difference 4",
    ),
    (torch.tensor([1.0, torch.nan]), torch.ones(2), "1 are NaN"),
    (torch.tensor([torch.nan]), torch.tensor([torch.nan]), "1 are NaN"),
    (torch.tensor([torch.inf]), torch.tensor([-torch.inf]), "got inf, expected -inf"),
    (torch.tensor([torch.inf]), torch.tensor([1.0]), "got inf, expected 1"),
    (torch.tensor([1.0]), torch.tensor([torch.inf]), "got 1, expected inf"),
    (torch.tensor([3, 4]), torch.tensor([3, 5]), r"\[1\]: got 4, expected 5; 1 of 2"),
    (3, 4, "got 3, expected 4"),
    ("a", "b", "got 'a', expected 'b'"),
    (None, 1, "got None, expected 1"),
    ("1", 1, "got '1', expected 1"),
    ([[1, 2], [3]], [[1, 2], [4]], r"at \[1\]: first at \[0\]: got 3, expected 4"),
    ([[1], [2, 3]], [[1], [2, 3], [4]], "got 2 items, expected 3; the first ones agree"),
    ({"a": 1}, {"b": 1}, r"keys missing: \['b'\], keys too many: \['a'\]"),
    ({"a": 1}, [1], "expected"),
    (["a", "b"], "ab", "expected 'ab'"),
]


@pytest.mark.parametrize(("got", "expected", "message"), DIFFERENT)
def test_a_wrong_step_says_what_differs_and_where_to_look(
    capsys: pytest.CaptureFixture[str], got: Any, expected: Any, message: str
) -> None:
    with pytest.raises(CheckFailed, match=message) as caught:
        check("step", got, expected, hint="the mask")
    assert str(caught.value).startswith("✗ step: ")
    assert str(caught.value).endswith("\n  Look at: the mask")
    assert capsys.readouterr().out == ""


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64]),
    data=st.data(),
)
def test_any_one_changed_element_is_found_at_its_index(
    shape: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    expected = torch.ones(shape, dtype=dtype)
    index = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    got = expected.clone()
    got[index] = 2
    with pytest.raises(CheckFailed, match=re.escape(f"first at [{', '.join(map(str, index))}]")):
        check("x", got, expected)


def test_a_given_tolerance_is_the_one_applied_and_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check("near", 1.05, 1.0, atol=0.1)
    assert capsys.readouterr().out == "✓ near (within 1e-01)\n"
    check("counts", torch.tensor([10]), torch.tensor([11]), rtol=0.2)
    with pytest.raises(CheckFailed):
        check("far", 1.05, 1.0, atol=0.01)
    with pytest.raises(CheckFailed):  # atol alone leaves no relative allowance
        check("far", 1000.0001, 1000.0, atol=1e-6)


def test_a_claim_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    check_that("faster", torch.tensor(True))
    assert capsys.readouterr().out == "✓ faster\n"
    with pytest.raises(CheckFailed, match="Look at: the flag"):
        check_that("faster", False, "the flag")


def test_an_open_exercise_is_open_and_a_wrong_one_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stub() -> int:
        raise NotImplementedError

    for answer in (stub, ..., lambda: ...):
        check_exercise("keys", answer, 5)
        assert capsys.readouterr().out == "○ keys: yours to do\n"
    check_exercise("keys", lambda: 5, 5)
    assert capsys.readouterr().out == "✓ keys (equal)\n"
    for wrong in (4, lambda: 4, None):
        with pytest.raises(CheckFailed):
            check_exercise("keys", wrong, 5)


def test_a_wrong_exercise_is_told_its_mistake_and_not_the_answer() -> None:
    asked = []

    def leads_to() -> list[int]:
        asked.append(1)
        return [4, 5, 7]

    for wrong in ([4, 5, 7], [4, 5, 9]):
        with pytest.raises(CheckFailed) as failed:
            check_exercise(
                "keys", lambda wrong=wrong: wrong, [4, 5, 612], mistakes={"one off": leads_to}
            )
        said = str(failed.value)
        assert f"got {wrong[2]}, which is not it" in said
        assert "612" not in said
        assert ("Likely: one off" in said) == (wrong[2] == 7)
        assert failed.value._render_traceback_() == said.splitlines()
    assert len(asked) == 2
    with pytest.raises(CheckFailed) as failed:
        check_exercise("word", lambda: "cat", "neko")
    assert "neko" not in str(failed.value)
    check_exercise("keys", lambda: [4], [4], mistakes={"never asked": leads_to})
    assert len(asked) == 2


def test_what_is_long_or_of_another_kind_is_named_and_not_printed() -> None:
    right, rows = torch.rand(7, 3), {"S = 0": torch.rand(7, 3), "S = 1": 2}
    for wrong, expected, words in (
        (list(right), right, "got list of 7 items, expected Tensor of shape [7, 3]"),
        ((right, None), (right, right), "at [1]: got NoneType, expected Tensor of shape [7, 3]"),
        ([True, False], [1, 0], "dtype bool, expected integer"),
        (rows | {"S = 1": 3}, rows, "at ['S = 1']: got 3, which is not it"),
    ):
        with pytest.raises(CheckFailed) as failed:
            check_exercise("loop", lambda wrong=wrong: wrong, expected)
        assert words in str(failed.value)
    for wrong, told in (([None, None], True), ([None, 5], False)):  # where None may be right
        with pytest.raises(CheckFailed) as failed:
            check_exercise("first", lambda wrong=wrong: wrong, [4, None])
        assert ("is there a `return`" in str(failed.value)) == told


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_is_the_same_bytes_twice_and_small(name: str) -> None:
    first, second = DIAGRAMS[name](), DIAGRAMS[name]()
    assert png(first) == png(second)
    assert svg(first, "alt") == svg(second, "alt")
    assert svg(first, "alt") == svg(first, "alt")
    assert len(png(first)) < 40_000
    assert not re.search(r"20\d\d-\d\d-\d\d|matplotlib v|Matplotlib v", svg(first))


@pytest.mark.parametrize("name", DIAGRAMS)
def test_no_text_is_under_eleven_points_and_the_background_is_white(name: str) -> None:
    drawn = DIAGRAMS[name]()
    sizes = [float(s) for s in re.findall(r"font(?:-size)?: ([\d.]+)px", svg(drawn))]
    exponents = 0.7  # of a power of ten on a log axis
    assert sizes
    assert min(sizes) >= 11 * (exponents if name in ("thermometer", "lines", "grouped bars") else 1)
    assert drawn.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_colour_is_never_the_only_cue() -> None:
    for cue in ("colour", "hatch", "marker"):
        values = [getattr(style, cue) for style in SERIES]
        assert len(set(values)) == len(values), cue
    assert len({style_of(kind) for kind in ("mamba", "sliding_window", "full")}) == 3
    assert style_of("free") == style_of("padding") != style_of("used")
    assert style_of("something else") == style_of("something else")
    assert style_of(len(SERIES)) == style_of(0)


def test_the_tree_has_a_box_a_node_and_those_that_are_kept_are_filled() -> None:
    fig = prefix_tree(some_texts())
    texts = [text for text in fig.axes[0].texts if text.get_bbox_patch() is not None]
    boxes = [(text.get_text(), text.get_bbox_patch()) for text in texts]
    filled = [name for name, box in boxes if box.get_facecolor() != (1.0, 1.0, 1.0, 1.0)]
    dashed = [name for name, box in boxes if box.get_linestyle() != "solid"]
    assert sorted(filled) == ["4", "43"]
    assert sorted(dashed) == ["0", "2", "3", "3"]  # the second cue
    written = {text.get_text() for text in fig.axes[0].texts if text not in texts}
    assert {"1 2", "3", "4", "9"} < written
    assert max(written, key=len).endswith("…")


def test_in_the_tree_nothing_overlaps_and_nothing_is_clipped() -> None:
    fig = prefix_tree(some_texts(), lambda tokens: "".join(map(str, tokens)))
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (*fig.axes[0].texts, *fig.legends[0].texts)]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])
        assert fig.bbox.x0 <= one.x0 <= one.x1 <= fig.bbox.x1
        assert fig.bbox.y0 <= one.y0 <= one.y1 <= fig.bbox.y1


def test_the_layer_strip_has_one_cell_a_layer_in_order() -> None:
    written = [text.get_text() for text in layer_strip(CONFIG).axes[0].texts]
    letters = {"mamba": "M", "sliding_window": "W", "full": "F"}
    assert written[::2] == [letters[kind] for kind in CONFIG.layer_kinds]
    assert written[1::2] == [str(i) for i in range(CONFIG.num_hidden_layers)]


def test_the_gantt_chart_sums_each_step() -> None:
    drawn = gantt([("a", 1, 9, "prefill"), ("b", 1, 1, "decode"), ("b", 3, 1, "decode")], budget=10)
    ticks = [t.get_text() for t in drawn.axes[0].get_xticklabels()]
    assert ticks == ["1\n10/10", "2\n0/10", "3\n1/10"]
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == ["a", "b"]


def test_small_figures_are_svg_and_large_ones_png(
    displayed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small, _ = figure(3, 2)
    large, ax = figure()
    ax.plot(np.random.default_rng(0).random(5000))
    assert len(svg(large).encode()) > MAX_SVG_BYTES
    for drawn, kind in ((small, "image/svg+xml"), (large, "image/png")):
        show(drawn, "a < b")
        assert capsys.readouterr().out == "[figure] a < b\n"
        data, metadata = displayed.pop()
        assert set(data) == {kind, "text/plain"}
        assert metadata == {kind: {"alt": "a < b"}}
        assert not displayed
    assert "<title>a &lt; b</title>" in svg(small, "a < b")


@pytest.mark.parametrize("alt", ["", "  ", "two\nlines"])
def test_a_figure_without_one_line_of_alt_text_is_refused(alt: str) -> None:
    with pytest.raises(ValueError, match="alt must be one line"):
        show(figure()[0], alt)


def test_several_axes_share_one_figure() -> None:
    drawn, axes = figures(9, 3, 3)
    assert len(axes) == 3
    assert drawn.axes == axes


def test_japanese_without_a_font_is_romanised_and_never_a_missing_glyph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures_module, "japanese_font", lambda: None)
    figures_module._drawable.cache_clear()
    try:
        assert label("窓", "mado") == "mado"
        assert drawable("窓 W") == "\\u7a93 W"
        assert drawable("✓ ○ Δ é") == "✓ ○ Δ é"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn, ax = figure()
            ax.set_title(drawable("窓🍣"))
            png(drawn)
    finally:
        figures_module._drawable.cache_clear()


def test_japanese_with_a_font_is_japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "japanese_font", lambda: "Noto Sans CJK JP")
    assert label("窓", "mado") == "窓"


# --- widgets -------------------------------------------------------------------------------------


def draw(window: int, exact: bool, kind: str) -> tuple[Figure, str]:
    return figure(3, 2)[0], f"window {window} exact {exact} kind {kind}"


CONTROLS: dict[str, Any] = {"window": (1, 8, 3), "exact": True, "kind": ["full", "mamba"]}


def test_without_a_kernel_the_default_setting_is_shown(
    displayed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    interactive(draw, **CONTROLS)
    assert capsys.readouterr().out == "[figure] window 3 exact True kind full\n"
    (picture, _), (controls, _) = displayed
    assert set(picture) == {"image/svg+xml", "text/plain"}
    assert set(controls) == {"text/plain"}
    said = controls["text/plain"]
    assert said.endswith("window 1 to 8, exact on or off, kind one of full mamba")


def test_moving_a_slider_draws_below_and_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    box = panel(draw, **CONTROLS)
    slider, tick, choice, image, caption = box.children
    assert (slider.value, tick.value, choice.value) == (3, True, "full")
    assert image.layout.display == "none"
    slider.value = 7
    tick.value = False
    choice.value = "mamba"
    assert bytes(image.value).startswith(b"\x89PNG")
    assert image.layout.display == ""
    assert caption.value == "window 7 exact False kind mamba"
    assert capsys.readouterr().out == ""


def test_a_figure_that_cannot_be_drawn_again_says_so_below_its_slider() -> None:
    def fails_later(n: int) -> tuple[Figure, str]:
        if n != 2:
            raise NameError("keys & values")
        return figure(3, 2)[0], "fine"

    slider, image, caption = panel(fails_later, n=(1, 3, 2)).children
    slider.value = 3
    assert image.layout.display == "none"
    assert "NameError: keys &amp; values" in caption.value
    slider.value = 2
    assert (image.layout.display, caption.value) == ("", "fine")


def test_a_slider_has_the_asked_step_and_kind() -> None:
    whole, fine = panel(
        lambda a, b: (figure()[0], f"{a} {b}"), a=(0, 100, 50, 10), b=(0.0, 1.0, 0.5)
    ).children[:2]
    assert (type(whole).__name__, whole.step) == ("IntSlider", 10)
    assert (type(fine).__name__, fine.step) == ("FloatSlider", 0.05)


@pytest.mark.parametrize("control", [(1, 2), [], "x", (1, 8, 9), 3])
def test_an_impossible_control_is_refused_by_name(control: Any) -> None:
    with pytest.raises(ValueError, match="interactive: window"):
        interactive(draw, window=control)


def test_defaults() -> None:
    assert [default_of(c) for c in CONTROLS.values()] == [3, True, "full"]


# --- recorded results ----------------------------------------------------------------------------

ORIGIN = {
    "machine": "NVIDIA H200",
    "versions": {"torch": "2.11.0"},
    "command": "plamo-ref bench",
    "date": "2026-11-23",
}


def test_a_recorded_result_comes_with_its_origin(tmp_path: Path) -> None:
    written = write_recorded("decode", {"ms": [1.5]}, **ORIGIN, folder=tmp_path)
    result = recorded("decode", tmp_path)
    assert written == tmp_path / "decode.json"
    assert result["ms"] == [1.5]
    assert result.label == (
        "recorded on NVIDIA H200, 2026-11-23 (torch 2.11.0); redo with: plamo-ref bench"
    )
    assert result.label in repr(result)


@pytest.mark.parametrize("key", [*ORIGIN, "data"])
def test_a_result_without_its_origin_is_refused(tmp_path: Path, key: str) -> None:
    content = {**ORIGIN, "data": [1]}
    for broken in ({k: v for k, v in content.items() if k != key}, content | {key: ""}):
        (tmp_path / "x.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(RecordedError, match=rf"x\.json: {key} missing or empty"):
            recorded("x", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        (json.dumps({**ORIGIN, "data": [1], "date": "yesterday"}), "date must be YYYY-MM-DD"),
        (json.dumps({**ORIGIN, "data": [1], "versions": "2.11"}), "versions must map"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecordedError, match=message):
        recorded("x", tmp_path)


def test_a_missing_result_names_those_that_exist(tmp_path: Path) -> None:
    write_recorded("decode", [1], **ORIGIN, folder=tmp_path)
    with pytest.raises(RecordedError, match=r"prefill\.json: no such .*; there are: decode"):
        recorded("prefill", tmp_path)


def test_writing_without_an_origin_leaves_nothing_behind(tmp_path: Path) -> None:
    for broken in (ORIGIN | {"machine": ""}, ORIGIN | {"date": "today"}):
        with pytest.raises(RecordedError):
            write_recorded("x", [1], **broken, folder=tmp_path)
        assert not list(tmp_path.iterdir())


def test_every_committed_result_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "notebooks" / "recorded"
    for path in sorted(folder.glob("*.json")):
        assert recorded(path.stem, folder).label


# --- the runner ----------------------------------------------------------------------------------


def test_running_a_notebook_twice_gives_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    source = [
        "from plamo_ref.teaching import *",
        "def draw(n):\n    return figure(3, 2)[0], f'n is {n}'",
        "interactive(draw, n=(1, 4, 2))",
        "check('sum', 1 + 1, 2)",
    ]
    cells = [new_code_cell(text, id=f"step-{i}") for i, text in enumerate(source)]
    nbformat.write(new_notebook(cells=cells), path)
    execute(path)
    first = path.read_text(encoding="utf-8")
    execute(path)
    assert path.read_text(encoding="utf-8") == first
    assert "widget" not in first  # neither state nor the id of a view
    assert "n is 2" in first
    assert "✓ sum (equal)" in first


def test_a_notebook_that_raises_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0", id="bad")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path)
    assert path.read_bytes() == before


def test_teaching_keeps_no_state_of_its_own() -> None:
    for path in (Path(__file__).parents[2] / "plamo_ref" / "teaching").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), path.name
