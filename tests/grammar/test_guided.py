"""Outputs that follow a grammar, in the reference and in every engine.

Invariant tested: a finished output is in the grammar's language; the mask allows a token exactly
when some text of the language goes on with its bytes; what cannot be enforced is refused by name.
"""

import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import (
    BOS,
    ENGINES,
    EOS,
    OP,
    assert_clean,
    noise_llm,
    noise_reference,
    noise_rows,
    preemptions,
)

from plamo_ref import LLM, SamplingParams
from plamo_ref.grammar.pool import GuidePool
from plamo_ref.reference import generate_ids
from plamo_ref.sampling import GuidedError, GuidedParams, GuideMaker
from plamo_ref.text.tokenizer import Plamo2Tokenizer

SEEDS = 12
TOKENIZER = Plamo2Tokenizer(noise_rows())
V = TOKENIZER.vocab_size + 7
MAKER = GuideMaker(TOKENIZER, V, [EOS])


@pytest.fixture(scope="module")
def shared() -> LLM:
    return noise_llm(max_num_seqs=8)


@pytest.fixture
def llm(shared: LLM):
    yield shared
    assert_clean(shared)


def outputs(llm: LLM, guided: GuidedParams, n: int = SEEDS, **params: Any):
    settings = {"seed": 0, "temperature": 1.5, "max_tokens": 80} | params
    wanted = SamplingParams(n=n, guided=guided, **settings)
    return llm.generate("the 東京", wanted, use_tqdm=False)[0].outputs


# --- JSON -----------------------------------------------------------------------------------------


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """A validator for the part of JSON schema that the tests use."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    low, high = schema.get("minimum", -(10**9)), schema.get("maximum", 10**9)
    match schema["type"]:
        case "object":
            known = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(known)
                and all(fits(value[key], known[key]) for key in value)
            )
        case "array":
            counted = schema["minItems"] <= len(value) <= schema["maxItems"]
            return (
                isinstance(value, list) and counted and all(fits(v, schema["items"]) for v in value)
            )
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        case "boolean":
            return isinstance(value, bool)
        case kind:
            raise AssertionError(f"this validator does not know {kind}")


def an_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = {
    "flat": an_object(name={"type": "string", "maxLength": 3}, ok={"type": "boolean"}),
    "Japanese keys and words": an_object(
        都市={"enum": ["東京", "京都", "𠮷野"]}, 数={"type": "integer", "minimum": 3, "maximum": 12}
    ),
    "nested": an_object(
        list={
            "type": "array",
            "items": {"anyOf": [{"type": "boolean"}, {"type": "integer", "maximum": 9}]},
            "minItems": 1,
            "maxItems": 3,
        },
        inner=an_object(x={"type": "string", "maxLength": 2}),
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_output_parses_and_fits_the_schema(llm, name):
    seen = set()
    schema = SCHEMAS[name]
    for output in outputs(llm, GuidedParams(json=schema)):
        if output.finish_reason == "length":  # an integer without minimum can be long
            assert name == "nested"
            continue
        assert output.finish_reason == "stop"
        assert fits(json.loads(output.text), schema)
        seen.add(output.text)
    assert len(seen) >= 4
    as_text = outputs(llm, GuidedParams(json=json.dumps(schema)), n=2)
    assert as_text == outputs(llm, GuidedParams(json=schema), n=2)


def test_a_json_object_is_any_object(llm):
    complete = [
        json.loads(o.text)
        for o in outputs(llm, GuidedParams(json_object=True), n=2 * SEEDS)
        if o.finish_reason == "stop"
    ]
    assert len(complete) >= 3
    assert all(isinstance(value, dict) for value in complete)


# --- regex, choice, Lark --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        r"[ぁ-ん]{1,9}",
        r"a{3}",
        r"(cat|category){1,3}",
        r"[0-9]{3}-[0-9]{4}",
        r"[東京都]{2}府?",
        r"x\n\\\"y",
    ],
)
def test_every_output_matches_the_regex(llm, pattern):
    for output in outputs(llm, GuidedParams(regex=pattern)):
        assert output.finish_reason == "stop"
        assert re.fullmatch(pattern, output.text)


CHOICES = [
    ["東京", "東京都", "京都"],
    ["🦙", "𠮷野家", "騠"],
    ["cat", "category", 'a "quoted" \\ text', "two\nlines\t\x01\x7f", "/slash/.*[a-z]+"],
]


@pytest.mark.parametrize("choice", CHOICES, ids=["prefixes", "bytes", "punctuation"])
def test_every_output_is_one_of_the_choices(llm, choice):
    found = outputs(llm, GuidedParams(choice=choice))
    assert {output.text for output in found} <= set(choice)
    assert {output.finish_reason for output in found} == {"stop"}
    assert len({output.text for output in found}) >= 2


@pytest.mark.parametrize("text", [text for choice in CHOICES for text in choice])
def test_each_choice_can_be_had(text):
    (choice,) = (choice for choice in CHOICES if text in choice)
    guide = MAKER.start(GuidedParams(choice=choice))
    for token in TOKENIZER.encode(text, add_bos=False):
        assert guide.mask([])[token]
        guide.accept(token)
    assert guide.complete


def test_characters_that_only_bytes_can_spell():
    for text in CHOICES[1]:
        ids = TOKENIZER.encode(text[0], add_bos=False)
        assert len(ids) == len(text[0].encode())
        assert {TOKENIZER.rows[i][2] for i in ids} == {"BYTE"}


def test_a_lark_grammar(llm):
    grammar = 'start: sum\nsum: term ("+" term)*\nterm: /[0-9]{1,2}/ | "(" sum ")"\n'
    sums = [o for o in outputs(llm, GuidedParams(grammar=grammar)) if o.finish_reason == "stop"]
    assert len(sums) >= 3
    for output in sums:
        assert set(output.text) <= set("0123456789+()")
        compile(re.sub(r"\b0+(\d)", r"\1", output.text), "a sum that Python can read", "eval")


# --- the mask itself ------------------------------------------------------------------------------

TEXTS = st.text(alphabet='abcatop 12あい東京都🦙𠮷\n"\\', min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_token_is_allowed_exactly_when_some_choice_goes_on_with_its_bytes(choice, random):
    guide, prefix = MAKER.start(GuidedParams(choice=choice)), b""
    wanted = [text.encode() for text in choice]
    while not guide.finished:
        complete = prefix in wanted
        assert guide.complete == complete
        expected = {
            i
            for i in range(TOKENIZER.vocab_size)
            if i not in TOKENIZER.control_ids
            and any(text.startswith(prefix + TOKENIZER.token_bytes(i)) for text in wanted)
        }
        allowed = set(guide.mask([]).nonzero()[0].tolist())
        ends = {EOS, OP} if complete else set()
        assert set(guide.mask([EOS, OP]).nonzero()[0].tolist()) == allowed | ends
        next_bytes = {t[len(prefix)] for t in wanted if t.startswith(prefix) and t != prefix}
        if len(next_bytes) > 1 or complete:
            assert allowed == expected
        else:  # what must come is cut as the tokenizer would
            assert allowed
            assert allowed <= expected
        token = random.choice(sorted(allowed))
        guide.accept(token)
        prefix += TOKENIZER.token_bytes(token)
    assert guide.complete
    assert prefix in wanted


def test_what_must_come_is_cut_as_the_tokenizer_would(llm):
    """A trained model has never seen forced text cut in another way."""
    text = "the stop cat 東京都です🦙 end"
    for output in outputs(llm, GuidedParams(choice=[text])):
        assert output.token_ids == tuple(TOKENIZER.encode(text, add_bos=False))


def test_a_stop_token_that_is_text_is_for_the_grammar_to_judge():
    cat, a = TOKENIZER.id_of("cat"), TOKENIZER.id_of("a")
    mask = MAKER.start(GuidedParams(choice=["cat"])).mask([cat, a, EOS])
    assert mask[cat]
    assert not mask[a]
    assert not mask[EOS]


def test_a_token_that_does_not_fit_is_a_bug_of_the_caller():
    guide = MAKER.start(GuidedParams(choice=["cat"]))
    with pytest.raises(GuidedError, match="token 2 does not fit"):
        guide.accept(EOS)


@pytest.mark.parametrize("name", ["flat", "Japanese keys and words"])
def test_a_guide_that_is_replayed_stands_where_one_stands_that_came_there(name):
    """Wherever it stood before: at its beginning, somewhere else, or further on."""
    params, draw = GuidedParams(json=SCHEMAS[name]), random.Random(3)
    guide, ids, masks = MAKER.start(params), [], []
    while not guide.finished and len(ids) < 40:
        masks.append(guide.mask((EOS,)))
        ids.append(draw.choice([int(token) for token in masks[-1].nonzero()[0]]))
        guide.accept(ids[-1])
    for count in (0, 1, len(ids) // 2, len(ids) - 1):
        guide.restart(ids[:count])
        assert (guide.mask((EOS,)) == masks[count]).all()
        again = MAKER.start(params)
        again.restart(ids[:count])
        for token in ids[count:]:
            again.mask((EOS,))
            again.accept(token)
        assert again.finished == guide_at(params, ids)


def guide_at(params: GuidedParams, ids: list[int]) -> bool:
    guide = MAKER.start(params)
    guide.restart(ids)
    return guide.finished


# --- the law --------------------------------------------------------------------------------------

LAW = (
    GuidedParams(regex="[ぁ-ん]+"),
    GuidedParams(json=SCHEMAS["flat"]),
    GuidedParams(choice=CHOICES[1]),
    None,
    GuidedParams(json=SCHEMAS["Japanese keys and words"]),
)


@pytest.fixture(scope="module")
def reference_ids() -> list[tuple[int, ...]]:
    maker = GuideMaker(TOKENIZER, noise_reference().config.vocab_size, [EOS])
    prompt = TOKENIZER.encode("12 です", add_bos=True)
    found = []
    for seed, guided in enumerate(LAW):
        params = SamplingParams(seed=seed, max_tokens=30, guided=guided)
        guide = None if guided is None else maker.start(guided)
        found.append(tuple(generate_ids(noise_reference(), prompt, params, [EOS], guide=guide)))
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_the_ids_are_the_reference_s_in_every_engine(name, reference_ids):
    llm = noise_llm(**ENGINES[name])
    params = [SamplingParams(seed=s, max_tokens=30, guided=g) for s, g in enumerate(LAW)]
    results = llm.generate(["12 です"] * len(LAW), params, use_tqdm=False)
    assert [r.outputs[0].token_ids for r in results] == reference_ids
    if "hardly any memory" in name:
        assert preemptions(llm) >= 1
    assert_clean(llm)


def text_of(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(i for i in ids if i != EOS)


@dataclass
class Late:
    """A guide whose masks come when its engine has asked a few times."""

    guide: Any
    draw: random.Random
    left: int = 0
    refused: int = 0  # times that somebody had to rest

    def accept(self, token):
        assert not self.left
        self.guide.accept(token)
        self.left = self.draw.choice([0, 0, 1, 5])

    def wait(self, seconds):
        self.left, late = max(0, self.left - 1), self.left > 0
        self.refused += late
        return not late

    def __getattr__(self, name):
        assert not self.left, f"{name} was asked before it was known"
        return getattr(self.guide, name)


@pytest.mark.parametrize("name", ENGINES)
def test_masks_that_come_late_change_no_token_of_anybody(name, reference_ids, monkeypatch):
    late: list[Late] = []

    def start(_, params):
        late.append(Late(MAKER.start(params), random.Random(len(late))))
        return late[-1]

    monkeypatch.setattr(GuidePool, "start", start)
    params = [SamplingParams(seed=s, max_tokens=30, guided=g) for s, g in enumerate(LAW)]
    llm = noise_llm(**{**ENGINES[name], "record": True})
    results = llm.generate(["12 です"] * len(LAW), params, use_tqdm=False)
    assert [r.outputs[0].token_ids for r in results] == reference_ids
    assert [r.outputs[0].text for r in results] == list(map(text_of, reference_ids))
    assert sum(guide.refused for guide in late) > 20
    assert_clean(llm)
    if name == "v1":  # the one without a grammar never rested
        (plain,) = [i for i, guided in enumerate(LAW) if guided is None]
        mine = [any(s.request_id == str(plain) for s in r.scheduled) for r in llm.records]
        assert all(mine[: mine.index(True) + 30])


# --- how a guided text ends -----------------------------------------------------------------------


def test_a_text_that_nothing_may_follow_needs_no_stop_token(llm):
    for output in outputs(llm, GuidedParams(regex="a{3}")):
        assert (output.text, output.finish_reason, output.stop_reason) == ("aaa", "stop", None)
        assert EOS not in output.token_ids


def test_a_text_that_could_go_on_ends_by_a_stop_token_or_by_length(llm):
    ended = outputs(llm, GuidedParams(regex="a+"), logit_bias={EOS: 3.0})
    assert {o.finish_reason for o in ended} == {"stop"}
    assert EOS in {o.stop_reason for o in ended} <= {EOS, BOS}
    assert all(re.fullmatch("a+", o.text) for o in ended)
    never = {EOS: -50.0, BOS: -50.0}
    cut = outputs(llm, GuidedParams(regex="a+"), logit_bias=never, max_tokens=5)
    assert {(o.text, o.finish_reason) for o in cut} == {("aaaaa", "length")}


def test_an_ignored_eos_cannot_appear_and_a_stop_token_of_the_user_takes_its_place(llm):
    likely = {"logit_bias": {EOS: 90.0, OP: 3.0}, "max_tokens": 9}
    for output in outputs(llm, GuidedParams(regex="a+"), ignore_eos=True, **likely):
        assert (output.text, output.finish_reason) == ("a" * 9, "length")
    own = {"ignore_eos": True, "stop_token_ids": [OP]} | likely
    for output in outputs(llm, GuidedParams(regex="a+"), **own):
        assert output.stop_reason == OP
        assert output.text == "a" * (len(output.token_ids) - 1) != ""


def test_a_grammar_that_is_done_ends_the_text_before_min_tokens(llm):
    (output, *_) = outputs(llm, GuidedParams(choice=["東京"]), min_tokens=30)
    assert (output.text, output.finish_reason) == ("東京", "stop")


def test_a_grammar_that_could_go_on_does_so_until_min_tokens(llm):
    found = outputs(llm, GuidedParams(regex="a+"), logit_bias={EOS: 90.0}, min_tokens=6)
    assert {o.text for o in found} == {"aaaaaa"}
    choice = GuidedParams(choice=["cat", "category"])
    for output in outputs(llm, choice, logit_bias={EOS: 90.0}, min_tokens=6):
        assert output.text == "category"


def test_a_user_cannot_forbid_all_that_the_grammar_allows(llm):
    bias = dict.fromkeys(range(V), float("-inf"))
    for output in outputs(llm, GuidedParams(choice=CHOICES[0]), logit_bias=bias):
        assert output.text in CHOICES[0]


@pytest.mark.parametrize(
    "grammar", ['start: "a" x\nx: x "c"', 'start: "a" start'], ids=["hopeless", "endless"]
)
def test_a_dead_end_ends_its_request_alone(llm, grammar):
    """Only on the way does the grammar engine find that no text can ever fit."""
    dead = SamplingParams(guided=GuidedParams(grammar=grammar), max_tokens=9)
    other = SamplingParams(seed=1, max_tokens=9)
    (alone,) = llm.generate("cat", other, use_tqdm=False)
    first, second = llm.generate(["cat", "cat"], [dead, other], use_tqdm=False)
    (output,) = first.outputs
    assert output.finish_reason == "error"
    assert re.match(r"guided\.grammar: after \d tokens: ", output.error)
    assert set(output.text) <= {"a"}
    assert len(output.token_ids) < 9
    assert second.outputs == alone.outputs


# --- refusals -------------------------------------------------------------------------------------

REFUSED = {
    "json": [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"not": {"type": "string"}}, r'Unimplemented keys: \["not"\]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {}, "then": {}}, '"if", "then"'),
        ({"type": "string", "format": "nonsense"}, "Unknown format: nonsense"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
        ({"enum": []}, "Unsatisfiable"),
        ("{", "line 1 column 2"),
        ("[1]", r"expected an object, not \[1\]"),
        ('[["type", "object"]]', "expected an object"),
        ("true", "expected an object, not True"),
    ],
    "regex": [
        ("(", "unclosed group"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bcat", "lookarounds"),
        (r"[^\s\S]", "no text fits"),
        ("", "no text fits"),
        ("\ud800", "surrogates"),
    ],
    "choice": [(["\ud800"], "not a Unicode scalar value")],
    "grammar": [
        ("start: foo", 'unknown name: "foo"'),
        ("start", "Expected token ':'"),
        ("start: /(/", "unclosed group"),
        ('start: start "a"', "no text fits"),
        ("start: <|plamo:op|>", "unknown special token"),
    ],
}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [(name, value, why) for name, cases in REFUSED.items() for value, why in cases],
)
def test_what_cannot_be_enforced_is_refused_by_name(name, value, why):
    with pytest.raises(GuidedError, match=rf"(?s)^guided\.{name}: .*{why}") as caught:
        MAKER.start(GuidedParams(**{name: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"regex": "a", "choice": ["a"]},
        {"json": {}, "json_object": True},
        {"choice": []},
        {"choice": "cat"},
        {"choice": ["cat", ""]},
        {"choice": [3]},
    ],
)
def test_exactly_one_sensible_field_is_given(fields):
    with pytest.raises(GuidedError, match=r"^guided"):
        GuidedParams(**fields)


def test_the_empty_schema_is_any_json():
    mask = MAKER.start(GuidedParams(json={})).mask([EOS])
    assert all(mask[TOKENIZER.id_of(first)] for first in ("{", "[", '"', "1", "true", "null"))


def test_a_refusal_comes_before_anything_runs_and_leaves_nothing_behind(llm):
    good, bad = SamplingParams(n=2), SamplingParams(guided=GuidedParams(regex="("))
    steps = llm.core.num_steps
    for call in (lambda *a: llm.generate(*a, use_tqdm=False), llm.stream):
        with pytest.raises(GuidedError, match=r"guided\.regex"):
            call(["a", "b", "c"], [good, bad, good])
        assert llm.core.num_steps == steps
        assert_clean(llm)


@dataclass
class Counted:
    """A guide that notes how it is used."""

    guide: Any
    calls: list[str] = field(default_factory=list)

    def mask(self, stop_ids):
        self.calls.append("mask")
        return self.guide.mask(stop_ids)

    def accept(self, token):
        self.calls.append("accept")
        self.guide.accept(token)

    def __getattr__(self, name):
        return getattr(self.guide, name)


def test_one_mask_a_token_also_when_preempted(monkeypatch):
    """A recomputed output is not read again by its grammar."""
    made: list[Counted] = []
    start = GuidePool.start

    def counted(self, params):
        made.append(Counted(start(self, params)))
        return made[-1]

    monkeypatch.setattr(GuidePool, "start", counted)
    llm = noise_llm(**ENGINES["v1, hardly any memory"])
    params = SamplingParams(n=5, seed=1, max_tokens=30, guided=GuidedParams(regex="[a-z]{60}"))
    found = llm.generate("the 東京", params, use_tqdm=False)[0].outputs
    assert preemptions(llm) >= 1
    for guide, output in zip(made, found, strict=True):
        assert guide.calls == ["mask", "accept"] * len(output.token_ids)
