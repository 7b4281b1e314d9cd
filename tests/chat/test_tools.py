"""Calls of tools as text: what forms write, grammars force, and readers understand.

Invariant tested: a text that was cut anywhere is read as the whole of it; whatever a grammar can
write is read as calls whose arguments fit their schemas; what is no call is text, to the letter.
"""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from plamo_ref import Plamo2Tokenizer
from plamo_ref.chat.template_tools import TemplateTools
from plamo_ref.chat.tool_forms import FORMS, JSON, ToolForm
from plamo_ref.grammar.guided import GuidedParams, GuideMaker
from plamo_ref.intake.hub import find
from plamo_ref.server.errors import ApiError
from plamo_ref.server.tools.grammar import arguments_schema, calls_or, forced, free
from plamo_ref.server.tools.reader import Arguments, CallBegins, Piece, Text, ToolReader
from plamo_ref.server.tools.schemas import Function

NAMES = ("weather", "now")
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Tokyo", '京都 "}]', "</tool_call>"]},
        "days": {"$ref": "#/$defs/Days"},
    },
    "required": ["city", "days"],
    "$defs": {"Days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
FUNCTIONS = (Function(name="weather", parameters=SCHEMA, strict=True), Function(name="now"))
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
Call = tuple[str, str]


def written(form: ToolForm, calls: Sequence[Call]) -> str:
    """As a model that knows the form writes it."""
    each = [form.head.replace("NAME", name) + given + form.tail for name, given in calls]
    if form.between is not None:
        return form.begin + form.between.join(each) + form.end
    assert form.joint is not None
    return form.joint.join(form.begin + call + form.end for call in each)


def read(form: ToolForm, parts: Sequence[str]) -> tuple[str, list[Call], list[Piece]]:
    """The text, the calls, and all pieces, of which those that follow each other are joined."""
    reader = ToolReader(form, NAMES)
    pieces = [piece for part in parts for piece in reader.push(part)] + reader.finish()
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Arguments) and isinstance(last, Arguments):
            assert piece.index == last.index
            joined[-1] = Arguments(last.index, last.text + piece.text)
        else:
            joined.append(piece)
    begun = [piece for piece in joined if isinstance(piece, CallBegins)]
    assert [call.index for call in begun] == list(range(len(begun)))
    given = {piece.index: piece.text for piece in joined if isinstance(piece, Arguments)}
    text = "".join(piece.text for piece in joined if isinstance(piece, Text))
    return text, [(call.name, given.get(call.index, "")) for call in begun], joined


def cut(text: str, places: Sequence[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(borders)]


places = st.lists(st.integers(0, 10_000), max_size=12)
nasty = st.text(max_size=6) | st.sampled_from(['"}', "\\", "]}", "</tool_call>", "<tool_call>"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | nasty,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty, inner, max_size=3),
    max_leaves=5,
)
calls = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(nasty, values, max_size=3).map(json.dumps)),
    min_size=1,
    max_size=3,
)


@forms
@given(said=st.sampled_from(["", "Hm. ", "見ます\n\n"]), made=calls, places=places)
def test_calls_are_read_however_they_are_cut(form, said, made, places):
    said = "" if form.starts and not form.openers else said
    opener = form.openers[0] if said and form.starts else ""  # else it stands at the beginning
    text = said + opener + written(form, made)
    whole = read(form, [text])
    assert whole[:2] == (said.rstrip(), made)
    assert read(form, cut(text, places)) == whole


fragments = st.sampled_from(
    sorted(
        {mark for form in FORMS.values() for mark in (*form.openers, *form.fillers, form.begin)}
        | {form.head.replace("NAME", name) for form in FORMS.values() for name in (*NAMES, "x")}
        | {form.tail for form in FORMS.values()}
        | {'{"arguments": {"a": 1}, "name": "now"}', '{"name": "now"}', '{"name": "no', "{}", "<"}
        | {'{"name": "now", "arguments": "{\\"a\\": 2}"}', "text", " ", "\n", '"', "\\", "}"}
    )
)


@forms
@given(fragments=st.lists(fragments, max_size=8), places=places)
def test_whatever_comes_is_read_alike_however_it_is_cut(form, fragments, places):
    text = "".join(fragments)
    whole = read(form, [text])
    assert read(form, cut(text, places)) == whole
    assert read(form, list(text)) == whole
    if not whole[1]:
        assert whole[0] == text  # nothing is lost


@forms
def test_arguments_come_as_they_are_written(form):
    reader = ToolReader(form, NAMES)
    start = written(form, [("now", '{"a": 1}')]).split('"a"')[0]
    pieces = reader.push(start)
    assert pieces == [CallBegins(0, "now"), Arguments(0, "{")]
    assert reader.push('"a": ') == [Arguments(0, '"a": ')]
    assert reader.push("1") == [Arguments(0, "1")]


@forms
def test_what_is_no_call_of_an_offered_function_is_text(form):
    for text in (
        written(form, [("other", "{}")]),
        written(form, [("weather", "[1]")]) if not form.in_object else form.begin + '{"name": 1}',
        form.begin + "nothing",
        f"see {form.begin}",
    ):
        assert read(form, [text])[:2] == (text, [])


def test_a_beginning_that_cannot_be_a_call_any_more_is_not_held_back():
    form = FORMS["plamo3"]
    for text in (form.sign + "x" * 2000, form.openers[0] + "x", "<tool_call"):
        pieces = ToolReader(form, NAMES).push(text)
        assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == text


def test_members_in_another_order_are_a_call_too():
    for text, arguments in (
        ('{"arguments": {"a": {"b": "}"}}, "name": "now"}', '{"a": {"b": "}"}}'),
        ('{"id": 3, "name": "now", "arguments": {}}', "{}"),
        ('{"name": "now", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "now"}', "{}"),
        ('{"name": "now", "arguments": null}', "{}"),
        ('{"name": "now", "arguments": {"a": "é"}, "id": {"x": "}"}}', '{"a": "é"}'),
    ):
        assert read(FORMS["hermes"], [f"<tool_call>{text}</tool_call>"])[:2] == (
            "",
            [("now", arguments)],
        )


def test_a_call_that_breaks_off_is_text_before_its_arguments_and_a_call_from_there():
    for form in FORMS.values():
        text = written(form, [("now", '{"a": 1}')])
        head = text.index('"a"')
        assert read(form, [text[: head - 2]])[:2] == (text[: head - 2], [])
        assert read(form, [text[: head + 4]])[:2] == ("", [("now", '{"a":')])


# --- grammars -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Plamo2Tokenizer:
    return Plamo2Tokenizer.from_folder(find("tiny"))


@pytest.fixture(scope="module")
def maker(tokenizer: Plamo2Tokenizer) -> GuideMaker:
    return GuideMaker(tokenizer, tokenizer.vocab_size, [tokenizer.eos_token_id or 0])


def walk(
    maker: GuideMaker,
    tokenizer: Plamo2Tokenizer,
    lark: str,
    beginning: str = "",
    seed: int = 0,
    longest: int = 5000,
) -> str:
    """A text that the grammar allows: the beginning, then tokens drawn as blindly as can be."""
    guide, ids, draw = maker.start(GuidedParams(grammar=lark)), [], random.Random(seed)
    for token in tokenizer.encode(beginning, add_bos=False):
        assert guide.mask(())[token], tokenizer.decode([*ids, token])
        guide.accept(token)
        ids.append(token)
    while not guide.finished and not (guide.complete and draw.random() < 0.6):
        token = draw.choice([int(i) for i in guide.mask(()).nonzero()[0]])
        guide.accept(token)
        ids.append(token)
        assert len(ids) < longest
    return tokenizer.decode(ids)


def fits(call: Call) -> bool:
    name, given = call[0], json.loads(call[1])
    if name == "now":
        return given == {}
    city = given.pop("city")
    return city in SCHEMA["properties"]["city"]["enum"] and given["days"] in range(1, 10)


@forms
@pytest.mark.parametrize("parallel", [True, False])
def test_a_forced_text_is_calls_that_fit(form, parallel, maker, tokenizer):
    lark = forced(form, FUNCTIONS, parallel=parallel)
    counts, names = set(), set()
    for seed in range(12):
        said, made, _ = read(form, [walk(maker, tokenizer, lark, seed=seed)])
        assert said == ""
        assert all(map(fits, made))
        counts.add(len(made))
        names |= {name for name, _ in made}
    assert names == set(NAMES)
    assert (counts == {1}) is not parallel


@forms
def test_in_a_free_text_whatever_begins_as_a_call_goes_on_as_one(form, maker, tokenizer):
    lark = free(form, FUNCTIONS, parallel=False)
    begun = form.begin or form.starts
    for seed in range(4):
        said = "" if form.starts else "Hm. "
        text = walk(maker, tokenizer, lark, said + begun, seed)
        heard, (call,), _ = read(form, [text])
        assert (heard, fits(call)) == (said.rstrip(), True)
    plain = "A text without a call: no { or <."
    assert read(form, [walk(maker, tokenizer, lark, plain)])[1] == []
    many = free(form, FUNCTIONS, parallel=True)
    one = written(form, [("now", "{}")])
    text = walk(maker, tokenizer, many, one + "\n" + one if form.joint else one)
    assert [name for name, _ in read(form, [text])[1]][:1] == ["now"]


def test_a_free_text_has_no_call_behind_its_beginning_where_a_form_has_none_there(maker, tokenizer):
    lark = free(FORMS["llama3_json"], FUNCTIONS, parallel=True)
    assert walk(maker, tokenizer, lark, "So <|python_").startswith("So <|python_")
    with pytest.raises(AssertionError, match=r"python_tag"):
        walk(maker, tokenizer, lark, 'So <|python_tag|>{"name": "now", "parameters": {}}')


def test_an_answer_in_json_may_come_instead_of_a_call(maker, tokenizer):
    lark = calls_or(FORMS["hermes"], FUNCTIONS, {"enum": [42]}, parallel=True)
    texts = {walk(maker, tokenizer, lark, seed=seed) for seed in range(20)}
    assert "42" in texts
    assert all(text == "42" or all(map(fits, read(FORMS["hermes"], [text])[1])) for text in texts)
    assert len(texts) > 1


def test_a_schema_that_names_properties_has_no_others_unless_it_says_so():
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}}
    parameters = {
        "properties": {"properties": inner, "const": inner, "open": {"type": "object"}},
        "$defs": {"D": inner},
        "enum": [{"properties": {}}],
    }
    schema = arguments_schema(Function(name="f", parameters=parameters))
    closed = {**inner, "additionalProperties": False}
    assert schema["properties"] == {
        "properties": closed,
        "const": closed,
        "open": {"type": "object"},
    }
    assert (schema["$defs"], schema["enum"]) == ({"D": closed}, [{"properties": {}}])
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    for said in ({"additionalProperties": True}, {"allOf": [inner]}, {"anyOf": [inner]}):
        kept = arguments_schema(Function(name="f", parameters={**inner, **said}))
        assert kept.get("additionalProperties") is said.get("additionalProperties")
    assert parameters["$defs"] == {"D": inner}  # what the client gave is shown to the model


def test_parameters_that_are_no_object_are_refused():
    for kind in ("array", ["string", "null"], "x"):
        with pytest.raises(ApiError, match="weather"):
            arguments_schema(Function(name="weather", parameters={"type": kind}))
    assert (
        arguments_schema(Function(name="f", parameters={"type": ["object", "null"]}))["type"]
        == "object"
    )


# --- templates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "tools", "shown_calls", "form"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False, False, None),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True, False, None),
        (
            "{% if tools is not defined %}{% set tools = none %}{% endif %}{{ tools }}",
            True,
            False,
            None,
        ),
        ("{{ messages[0].tool_calls }}", False, True, None),
        ("{{ messages[0]['tool_calls'] }}", False, True, None),
        ("{% if 'tool_calls' in messages[0] %}{% endif %}", False, True, None),
        ("tools and tool_calls, as mere words", False, False, None),
        ("{% set tools = 1 %}", False, False, None),
        ("{{ '<tool_call>' }}", False, False, "hermes"),
        ("{{ '<tool_call><function=' }}", False, False, None),
        ("[TOOL_CALLS]", False, False, "mistral"),
        ("[TOOL_CALLS]f[ARGS]", False, False, None),
        ("<|python_tag|>", False, False, "llama3_json"),
        ("<|plamo:begin_tool_request:plamo|>", False, False, "plamo3"),
    ],
)
def test_what_a_template_knows_is_read_from_it(source, tools, shown_calls, form):
    known = TemplateTools.of(source, Environment())
    assert (known.shows_tools, known.shows_calls) == (tools, shown_calls)
    assert known.form is (None if form is None else FORMS[form])


def test_our_own_template_knows_everything():
    source = (Path(__file__).parents[1] / "tools.jinja").read_text()
    known = TemplateTools.of(source, Environment())
    assert (known.shows_tools, known.shows_calls) == (True, True)
    assert known.form is FORMS["hermes"]
    assert JSON not in (known.form, *(f for f in FORMS.values() if f.signs))
