"""The HTTP face, field by field: shapes, statuses, limits, templates.

Invariant tested: a client's mistake is a 4xx in OpenAI's shape that names the field, never a 500
and never a crash; what is served fits the OpenAPI document.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Histogram
from servers import RunningServer, running_server

import plamo_ref
from plamo_ref import LLM, Plamo2Tokenizer, SamplingParams
from plamo_ref.chat.templates import TemplateLoadError, TemplateRefusesError, load_template
from plamo_ref.intake.hub import find
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.document import below
from plamo_ref.server.metrics import SECONDS, Waits
from plamo_ref.server.openai.logprobs import CompletionLogprobs, token_text
from plamo_ref.server.openai.params import common_params
from plamo_ref.server.openai.schemas import CompletionRequest
from plamo_ref.server.openai.wire import event

LIMIT = 512  # max_model_len
BODY = 200_000
GREEDY = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--max-model-len", str(LIMIT), "--max-body-bytes", str(BODY))
    with running_server(tmp_path_factory.mktemp("server"), *options, model="tiny") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def complete(client: httpx.Client, **fields: object) -> dict:
    answer = client.post("/v1/completions", json={**GREEDY, "prompt": "吾輩は", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, param: str | None = None) -> dict:
    """The error of an answer, whose shape is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["param"] == param, body
    return body["error"]


def events(text: str) -> list[dict]:
    """The events of a stream, whose framing is checked."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


# --- what is there --------------------------------------------------------------------------------


def test_the_model_the_version_and_the_health_are_told(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/version").json() == {"version": plamo_ref.__version__}
    assert client.get("/health").json() == {"status": "ready", "restarts": 0}


def test_the_front_has_no_torch_to_wait_for(server, client):
    """Nothing that a client asks for needs it there: half of the start, 200 MB."""
    complete(client, prompt="To be", max_tokens=2, logprobs=1, structured_outputs={"regex": "a*"})
    loaded = {Path(each.path).name for each in psutil.Process(server.process.pid).memory_maps()}
    assert any(name.startswith("_zmq") for name in loaded)
    assert [name for name in loaded if "torch" in name] == []


def test_a_completion_is_the_offline_engines(server, client):
    params = SamplingParams(temperature=0.9, seed=11, max_tokens=9, top_p=0.95, n=2)
    llm = LLM(server.model, memory_bytes=64 << 20)
    offline = llm.generate("To be, or", params, use_tqdm=False)[0]
    body = complete(
        client, prompt="To be, or", temperature=0.9, seed=11, max_tokens=9, top_p=0.95, n=2
    )
    assert body["object"] == "text_completion"
    assert body["model"] == "tiny"
    got = [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]]
    assert got == [(o.index, o.text, o.finish_reason) for o in offline.outputs]
    tokens = sum(len(o.token_ids) for o in offline.outputs)
    prompt = len(offline.prompt_token_ids)
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


LONG = "It was the best of times, it was the worst of times, it was the age of wisdom, it was "


def cached(body: dict) -> int:
    return body["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_the_same_prompt_is_found_computed_unless_it_is_salted_or_forgotten(server, client):
    before = server.metrics()
    asked = {"prompt": LONG, "max_tokens": 3}
    first, again = complete(client, **asked), complete(client, **asked)
    length = first["usage"]["prompt_tokens"]
    assert (cached(first), cached(again)) == (0, length - 1)
    assert again["choices"] == first["choices"]
    salted = [complete(client, **asked, cache_salt=salt, n=2, seed=1) for salt in ("a", "a", "b")]
    assert [cached(body) for body in salted] == [0, length - 1, 0]
    assert client.post("/reset_prefix_cache").json() == {"success": True}
    assert cached(complete(client, **asked)) == 0
    server.wait_until_idle()
    after = server.metrics()

    def grown(name: str) -> float:
        return after[f"plamo_ref_prefix_cache_{name}"] - before.get(
            f"plamo_ref_prefix_cache_{name}", 0
        )

    assert grown("queries_total") == 9 * length
    assert grown("hits_total") == (1 + 1 + 2 + 1) * (length - 1)
    assert grown('misses_total{reason="first seen"}') == 2
    assert grown('misses_total{reason="salt"}') == 2
    assert after["plamo_ref_prefix_cache_states"] == 2
    assert after["plamo_ref_prefix_cache_bytes"] > 0
    refused(
        client.post("/v1/completions", json={**GREEDY, **asked, "cache_salt": ""}),
        400,
        "cache_salt",
    )


def test_the_second_conversation_with_the_same_instructions_begins_behind_them(client):
    """Nobody has shown yet that conversations part there: the server knows it."""
    found = []
    for question in ("Who are you?", "What time is it?", "And now?"):
        messages = [{"role": "system", "content": LONG}, {"role": "user", "content": question}]
        asked = {"model": "tiny", "messages": messages, "max_tokens": 2, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        answer = client.post("/v1/chat/completions", json={**asked, **options})
        found.append(cached(events(answer.text)[-1]))
    instructions = client.post("/tokenize", json={"prompt": LONG}).json()["count"]
    assert found[0] == 0
    assert found[1] == found[2] >= instructions
    answer = client.post("/v1/responses", json={"input": LONG * 2, "max_output_tokens": 16}).json()
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 0


def test_text_goes_to_tokens_and_back(client):
    text = "吾輩は猫である。🙂\0 x"
    tokens = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == LIMIT
    back = client.post("/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": text}
    tokenizer = Plamo2Tokenizer.from_folder(find("tiny"))
    assert client.post("/tokenize", json={"prompt": text}).json()["tokens"] == tokenizer.encode(
        text
    )


def test_metrics_count_what_was_done(server, client):
    before = server.metrics()
    complete(client, max_tokens=7, ignore_eos=True)
    after = server.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("plamo_ref_generation_tokens_total") == 7
    assert grown("plamo_ref_prompt_tokens_total") > 0
    assert grown("plamo_ref_time_to_first_token_seconds_count") == 1
    assert grown("plamo_ref_inter_token_latency_seconds_count") == 6
    assert grown('plamo_ref_requests_finished_total{reason="length"}') == 1
    assert after["plamo_ref_engine_up"] == 1
    assert {"plamo_ref_requests_waiting", "plamo_ref_preemptions_total"} <= after.keys()
    server.wait_until_idle()


# --- echo and log probabilities -------------------------------------------------------------------


def test_echo_with_logprobs_scores_the_prompt(client):
    ids = client.post("/tokenize", json={"prompt": "吾輩は猫である。"}).json()["tokens"]
    body = complete(client, prompt=ids, echo=True, logprobs=2, max_tokens=1)
    (choice,) = body["choices"]
    columns = choice["logprobs"]
    assert {len(column) for column in columns.values()} == {len(ids) + 1}
    assert columns["token_logprobs"][0] is None
    assert columns["top_logprobs"][0] is None
    assert all(-9999 <= value <= 0 for value in columns["token_logprobs"][1:])
    for token, value, top in list(zip(*list(columns.values())[:3], strict=True))[1:]:
        assert next(iter(top.items())) == (token, value)
        assert len(top) in (2, 3)
    assert columns["token_logprobs"][-1] == max(columns["top_logprobs"][-1].values())  # greedy
    nothing = complete(client, prompt=ids, echo=True, logprobs=2, max_tokens=0)
    (only,) = nothing["choices"]
    assert (only["text"], only["finish_reason"]) == ("吾輩は猫である。", "length")
    assert only["logprobs"] == {name: column[:-1] for name, column in columns.items()}
    assert nothing["usage"]["completion_tokens"] == 0


def test_a_chat_has_its_logprobs_token_by_token(client):
    messages = [{"role": "user", "content": "猫"}]
    fields = {**GREEDY, "messages": messages, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    (choice,) = client.post("/v1/chat/completions", json=fields).json()["choices"]
    content = choice["logprobs"]["content"]
    assert (
        b"".join(bytes(entry["bytes"]) for entry in content).decode()
        == (choice["message"]["content"])
    )
    for entry in content:
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"]
        assert len(entry["top_logprobs"]) == 2


def test_half_a_character_is_named_by_its_bytes():
    tokenizer = Plamo2Tokenizer.from_folder(find("tiny"))
    ids = tokenizer.encode("🫠", add_bos=False)
    assert [token_text(tokenizer, i) for i in ids] == [
        "bytes:\\xf0",
        "bytes:\\x9f",
        "bytes:\\xab",
        "bytes:\\xa0",
    ]
    columns = CompletionLogprobs(tokenizer).columns([*ids, *ids], [None] * 8)
    assert columns.text_offset == [0, 0, 0, 0, 1, 1, 1, 1]


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [5120]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"seed": 0.5}, "seed"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"use_beam_search": 0}, "use_beam_search"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_a_wrong_field_is_named(client, fields, param):
    body = {**GREEDY, "prompt": "x", "max_tokens": 1, **fields}
    refused(client.post("/v1/completions", json=body), 400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {"5120": 1}},
        {"stop_token_ids": [5120]},
        {"guided_json": {"maximum": 2**70}},
    ],
)
def test_what_the_engine_would_not_take_is_the_clients_mistake(client, fields):
    body = json.dumps({**GREEDY, "prompt": "x", "max_tokens": 3, **fields})
    answer = client.post(
        "/v1/completions", content=body, headers={"Content-Type": "application/json"}
    )
    refused(answer, 400)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{} x", b"[" * 100_000, b"9" * 5000],
)
def test_a_body_that_is_no_object_is_refused(client, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        refused(answer, 400)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"min_tokens": 99}, "min_tokens", "invalid_combination"),
        ({"max_tokens": 0}, "max_tokens", "invalid_combination"),
        ({"best_of": 3}, "best_of", "invalid_combination"),
        ({"prompt": "", "add_special_tokens": False}, "prompt", "invalid_combination"),
        ({"prompt": [9] * LIMIT}, "prompt", "context_length_exceeded"),
        ({"guided_regex": "("}, None, "unsupported_grammar"),
        ({"structured_outputs": {"grammar": "x: y"}}, None, "unsupported_grammar"),
        ({"guided_json": {"type": "string", "maxLength": -1}}, None, "unsupported_grammar"),
        (
            {"guided_regex": "a", "structured_outputs": {"choice": ["b"]}},
            "guided_regex",
            "invalid_combination",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.regex",
            "invalid_combination",
        ),
    ],
)
def test_what_no_schema_can_say_has_a_code_of_its_own(client, fields, param, code):
    body = {**GREEDY, "prompt": "x", "max_tokens": 3, **fields}
    assert refused(client.post("/v1/completions", json=body), 400, param)["code"] == code


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"json": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}}, r"\[[12, ]*\]"),
        ({"json": '{"enum": ["x"]}', "json_object": False}, r'"x"'),
        ({"json_object": True, "choice": None}, r"\{.*"),  # it may go on for ever
        ({"regex": "[ab]{3}"}, "[ab]{3}"),
        ({"choice": ["はい", "いいえ"]}, "はい|いいえ"),
        ({"grammar": 'start: "z" "y"'}, "zy"),
    ],
)
def test_structured_outputs_are_followed(client, outputs, pattern):
    body = complete(client, structured_outputs=outputs, max_tokens=200, seed=1, temperature=1)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop" or "json_object" in outputs
    assert re.fullmatch(pattern, choice["text"], re.DOTALL), choice["text"]


def test_any_integer_is_a_seed(client):
    texts = [
        complete(client, seed=seed, temperature=1, max_tokens=8)["choices"][0]["text"]
        for seed in (5, 5 + 2**64, 5 - 2**64, -(2**63), 2**63, 10**30)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == texts[4]
    assert len(set(texts)) == 3


def test_an_integer_may_be_written_as_json_writes_it(client):
    answer = complete(client, prompt=[50.0, 51], max_tokens=3.0, seed=7.0, n=1.0)
    assert answer["choices"] == complete(client, prompt=[50, 51], max_tokens=3, seed=7)["choices"]


def test_the_document_tells_the_limits_of_this_server(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["CompletionRequest"]["properties"]

    def of(name: str, kind: str) -> dict:
        field = fields[name]
        (found,) = [o for o in field.get("anyOf", [field]) if o.get("type") == kind]
        return found

    assert of("model", "string")["enum"] == ["tiny"]
    assert of("n", "integer")["maximum"] == 64
    assert of("logprobs", "integer")["maximum"] == 20
    assert of("max_tokens", "integer")["maximum"] == LIMIT - 1
    assert of("stop_token_ids", "array")["items"]["maximum"] == 5119
    names = re.compile(of("logit_bias", "object")["propertyNames"]["pattern"])
    assert [i for i in range(5200) if names.match(str(i))] == list(range(5120))
    (ids,) = [o for o in fields["prompt"]["anyOf"] if o.get("items", {}).get("type") == "integer"]
    assert (ids["minItems"], ids["maxItems"], ids["items"]["maximum"]) == (1, LIMIT - 1, 5119)


def test_the_document_describes_answers_by_the_classes_that_make_them(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    whole = client.post(
        "/v1/chat/completions", json={**GREEDY, "messages": [{"role": "user", "content": "a"}]}
    ).json()
    assert schemas["ChatAnswer"]["required"] == list(schemas["ChatAnswer"]["properties"])
    assert whole.keys() == set(schemas["ChatAnswer"]["required"])
    choice, (first,) = schemas["ChatChoice"], whole["choices"]
    assert first.keys() == set(choice["required"]) == set(choice["properties"])
    assert "tool_calls" not in schemas["AssistantMessage"]["required"]  # absent, not null
    assert "tool_calls" not in first["message"]
    assert schemas["ToolCall"]["additionalProperties"] is False  # a request's keeps its name


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_numbers_below_a_limit_are_what_the_pattern_matches(limit, number):
    assert bool(re.match(below(limit), str(number))) == (number < limit)
    assert not re.match(below(limit), "0" + str(number))


def test_waits_are_counted_as_prometheus_counts_them():
    ours, theirs = Waits("x", "text"), Histogram("plamo_ref_x_seconds", "text", buckets=SECONDS)
    for seconds, count in ((0.001, 3), (0.0011, 2), (60.0, 1), (61.0, 2), (0.0, 1)):
        ours.add(seconds, count)
        for _ in range(count):
            theirs.observe(seconds)
    (mine,), (other,) = ours.collect(), theirs.collect()
    wanted = [sample for sample in other.samples if not sample.name.endswith("_created")]
    assert [s[:2] for s in mine.samples] == [s[:2] for s in wanted]
    assert [s.value for s in mine.samples] == pytest.approx([s.value for s in wanted])


def test_an_unknown_model_and_an_unknown_path_are_404(client):
    body = {"model": "gpt-4", "prompt": "x"}
    error = refused(client.post("/v1/completions", json=body), 404, "model")
    assert error["code"] == "model_not_found"
    refused(client.get("/v1/models/a/b"), 404, "model")
    refused(client.get("/v1/engines"), 404)
    refused(client.get("/v1/completions"), 405)


def test_a_large_body_is_refused_whether_or_not_it_says_its_size(client):
    body = json.dumps({"model": "tiny", "prompt": "x" * 10_000_000}).encode()
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    headers = {"Content-Type": "application/json"}
    refused(client.post("/v1/completions", content=body, headers=headers), 413)
    refused(client.post("/v1/completions", content=chunks, headers=headers), 413)


def test_prompt_and_output_have_to_fit_together(client):
    full = [50] * LIMIT
    assert complete(client, prompt=full[:-1], max_tokens=1)["usage"]["total_tokens"] == LIMIT
    for prompt, max_tokens in ((full[:-1], 2), (full, 1), ("x" * 100_000, 1), (full[:-9], 10)):
        fields = {**GREEDY, "prompt": prompt, "max_tokens": max_tokens}
        error = refused(client.post("/v1/completions", json=fields), 400, "prompt")
        assert error["code"] == "context_length_exceeded"


def test_fields_that_change_nothing_are_let_through(client):
    more = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "n": None}
    more |= {"use_beam_search": False, "bad_words": [], "prompt_logprobs": None, "suffix": ""}
    assert complete(client, max_tokens=2, **more)["usage"]["completion_tokens"] == 2


@settings(max_examples=60)
@given(
    body=st.dictionaries(
        st.sampled_from(sorted({*CompletionRequest.model_fields, "x"} - {"model", "max_tokens"})),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=6,
        ),
    )
)
def test_whatever_is_sent_the_answer_is_in_shape(client, body):
    # json.dumps writes NaN and lone surrogates, as careless clients do.
    content = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1, **body})
    answer = client.post(
        "/v1/completions", content=content, headers={"Content-Type": "application/json"}
    )
    if answer.status_code != 200:
        refused(answer, 400, answer.json()["error"]["param"])


def test_parameters_left_out_have_the_engines_defaults():
    request = CompletionRequest(model="tiny", prompt="x", top_p=None)
    config = ServerConfig(model_name="tiny")
    assert common_params(request, config, 16) == SamplingParams()


def test_json_that_is_not_called_json_is_refused_with_the_reason(client):
    body = json.dumps({**GREEDY, "prompt": "x"})
    error = refused(client.post("/v1/completions", content=body), 400)  # as `curl -d` does
    assert "Content-Type" in error["message"]


# --- keys and origins -----------------------------------------------------------------------------


def test_without_the_key_nothing_but_health_answers(tmp_path):
    origin = "https://page.example"
    options = ("--api-key", "geheim", "--api-key", "鍵", "--cors-origin", origin)
    with running_server(tmp_path, *options) as server, server.client() as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer gehei"}, {"Authorization": "Basic geheim"}):
            for path in ("/v1/models", "/metrics", "/version", "/openapi.json"):
                error = refused(client.get(path, headers=headers), 401)
                assert error["code"] == "invalid_api_key"
        for key in ("geheim", "鍵"):
            headers = {"Authorization": b"Bearer " + key.encode(), "Origin": origin.encode()}
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/completions", headers=asked).status_code == 200


def test_there_is_no_cors_unless_asked_for(client):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        client.get("/v1/models", headers=asked),
        client.options("/v1/completions", headers=asked),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


# --- chat templates -------------------------------------------------------------------------------


def template_of(folder: Path, wanted: str | None = None):
    return load_template(folder, wanted, Plamo2Tokenizer.from_folder(find("tiny")))


def test_the_translate_format_is_the_makers():
    template = template_of(find("tiny"), "translate")
    assert template is not None
    one = [{"role": "user", "content": "Hello"}]
    languages = {"source_lang": "English", "target_lang": "Japanese"}
    head = "<|plamo:op|>dataset\ntranslation\n"
    assert template.render(one, languages) == (
        f"{head}<|plamo:op|>input lang=English\nHello\n<|plamo:op|>output lang=Japanese\n"
    )
    assert template.render(one, {}) == (
        f"{head}<|plamo:op|>input lang=English|Japanese\nHello\n<|plamo:op|>output\n"
    )
    assert template.stops == ("<|plamo:op|>",)
    with pytest.raises(TemplateRefusesError, match="system"):
        template.render([{"role": "system", "content": "x"}], {})


def test_a_checkpoints_own_template_is_used_in_all_its_forms(tmp_path):
    source = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    config = tmp_path / "tokenizer_config.json"
    for own in (
        source,
        [{"name": "tool", "template": "x"}, {"name": "default", "template": source}],
    ):
        config.write_text(json.dumps({"chat_template": own}))
        template = template_of(tmp_path)
        assert template is not None
        assert (
            template.render(messages, {"bos_token": "cannot be changed"}) == "<|plamo:bos|>[a][b]"
        )
    config.write_text("{}")
    assert template_of(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text("file")
    assert template_of(tmp_path).render(messages, {}) == "file"  # type: ignore[union-attr]
    (tmp_path / "chat_template.jinja").write_text("file\n")  # as editors end it
    assert template_of(tmp_path).render(messages, {}) == "file"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["{", "[]", '{"chat_template": ["x"]}'])
def test_a_tokenizer_config_that_is_broken_is_named(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(TemplateLoadError, match=r"tokenizer_config\.json"):
        template_of(tmp_path)


def test_a_turn_ends_at_a_token_where_the_templates_stop_is_one():
    tokenizer = Plamo2Tokenizer.from_folder(find("tiny"))
    for name in ("translate", "plain"):
        template = template_of(find("tiny"), name)
        assert template is not None
        params = template.with_stops(SamplingParams(stop=["x"]), tokenizer)
        if name == "translate":
            assert list(params.stop) == ["x"]
            assert list(params.stop_token_ids) == [tokenizer.id_of("<|plamo:op|>")]
        else:
            assert list(params.stop) == ["x", "\nuser:", "\nsystem:"]


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ raise_exception.__globals__.sys }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content }}",
    ],
)
def test_a_template_can_neither_break_out_nor_break_the_server(tmp_path, attack):
    path = tmp_path / "attack.jinja"
    path.write_text(attack)
    template = template_of(tmp_path, str(path))
    assert template is not None
    with pytest.raises(TemplateRefusesError, match="the chat template refuses"):
        template.render([{"role": "user", "content": "x"}], {})


def test_a_template_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(TemplateLoadError, match="translate"):
        template_of(tmp_path, "no-such-file")
    path = tmp_path / "broken.jinja"
    path.write_text("{% for %}")
    with pytest.raises(TemplateLoadError, match=r"broken\.jinja"):
        template_of(tmp_path, str(path))


def test_a_chat_ends_where_the_user_would_speak_and_knows_parts(client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    fields = {**GREEDY, "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    body = client.post("/v1/chat/completions", json=fields).json()
    plain = {**fields, "messages": [{"role": "user", "content": "ab"}]}
    again = client.post("/v1/chat/completions", json=plain).json()
    assert body["choices"] == again["choices"]
    assert body["object"] == "chat.completion"
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    wrong = {**fields, "messages": [{"role": "user", "content": image}]}
    refused(client.post("/v1/chat/completions", json=wrong), 400, "messages")
    tools = {**fields, "tools": [{"type": "function", "function": {"name": "f"}}]}
    refused(client.post("/v1/chat/completions", json=tools), 400, "tools")


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_framed_and_named_as_clients_expect(client, path):
    chat = "chat" in path
    fields = {**GREEDY, "max_tokens": 5, "n": 2, "stream": True}
    fields |= {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
    fields["stream_options"] = {"include_usage": True}
    answer = client.post(path, json=fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (*chunks, last) = events(answer.text)
    kind = "chat.completion.chunk" if chat else "text_completion"
    assert {chunk["object"] for chunk in [*chunks, last]} == {kind}
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 10)
    for index in (0, 1):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["length"]
        assert mine[-1]["finish_reason"] == "length"
        if chat:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}


def test_a_mistake_in_a_stream_is_an_ordinary_answer(client):
    fields = {**GREEDY, "prompt": "x", "stream": True, "guided_regex": "("}
    refused(client.post("/v1/completions", json=fields), 400)


def test_a_grammar_s_dead_end_is_an_error_that_says_so(client):
    """Only on the way is it found, with the first token."""
    fields = {**GREEDY, "prompt": "x", "guided_grammar": 'start: "a" x\nx: x "c"'}
    error = refused(client.post("/v1/completions", json=fields), 400)
    assert error["code"] == "unsupported_grammar"
    assert "guided.grammar: after 1 tokens" in error["message"]
    # Streamed, it comes before there is anything to stream.
    assert refused(client.post("/v1/completions", json={**fields, "stream": True}), 400) == error


@given(st.text())
def test_an_event_is_one_line_whatever_it_says(text):
    data = event({"text": text.encode("utf-8", "replace").decode()})
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert b"\n" not in data[:-2]
    assert b"\r" not in data
