"""Every field that a client may send: honoured, refused by name, or known to change nothing.

Invariant tested: the three sorts cover all fields; what is honoured changes the answer as it says,
what is not never passes without a word.
"""

import json
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from pydantic import ValidationError
from servers import RunningServer, running_server

from plamo_ref import Plamo2Tokenizer
from plamo_ref.intake.hub import find
from plamo_ref.server.edge import elsewhere
from plamo_ref.server.openai.responses_schemas import ResponsesRequest
from plamo_ref.server.openai.schemas import ChatRequest, CompletionRequest
from plamo_ref.weights.checkpoint import Checkpoint

COMPLETION = {"prompt": "吾輩は", "max_tokens": 9, "temperature": 0, "return_token_ids": True}
CHAT = {
    "messages": [{"role": "user", "content": "猫は"}],
    "max_tokens": 9,
    "temperature": 0,
    "return_token_ids": True,
}
TOKENIZER = Plamo2Tokenizer.from_folder(find("tiny"))
(EOS, *_) = Checkpoint.open(find("tiny")).stop_token_ids
OP = TOKENIZER.id_of("<|plamo:op|>")
SCHEMA = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    names = ("--served-model-name", "klein", "--max-model-len", "256")
    with running_server(tmp_path_factory.mktemp("server"), *names) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def ask(client: httpx.Client) -> Callable[..., dict]:
    """A completion, or, with messages, a chat; its body."""

    def asked(**fields: object) -> dict:
        answer = client.post(path_of(fields), json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return asked


def path_of(fields: dict) -> str:
    chat = isinstance(fields.get("messages"), list)
    return "/v1/chat/completions" if chat else "/v1/completions"


def text(body: dict, index: int = 0) -> str:
    choice = body["choices"][index]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def ids(body: dict) -> list[int]:
    return body["choices"][0]["token_ids"]


def refusal(client: httpx.Client, fields: dict) -> dict:
    answer = client.post(path_of(fields), json=fields)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


# --- what is honoured -----------------------------------------------------------------------------

Check = Callable[[dict, dict], bool]  # of the answer, and of the answer without the field


def follows(pattern: str) -> Check:
    return lambda body, _: re.fullmatch(pattern, text(body)) is not None


def differs(body: dict, plain: dict) -> bool:
    return text(body) != text(plain)


def is_greedy(body: dict, plain: dict) -> bool:
    """With temperature 1 and a seed, which alone would give something else."""
    return text(body) == text(plain)


# Field → (it and what it needs, what it does); of both routes where nothing else is said.
HONOURED: dict[str, tuple[dict, Check]] = {
    "model": ({"model": "klein"}, lambda body, plain: body["model"] == "tiny"),
    "frequency_penalty": ({"frequency_penalty": 2, "max_tokens": 30}, differs),
    "presence_penalty": ({"presence_penalty": 2, "max_tokens": 30}, differs),
    "repetition_penalty": ({"repetition_penalty": 2.5, "max_tokens": 30}, differs),
    "max_tokens": ({"max_tokens": 3}, lambda body, _: len(ids(body)) == 3),
    "max_completion_tokens": ({"max_completion_tokens": 3}, lambda body, _: len(ids(body)) == 3),
    "n": ({"n": 3}, lambda body, _: [c["index"] for c in body["choices"]] == [0, 1, 2]),
    "response_format": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        follows(r"\[[12, ]*\]"),
    ),
    "structured_outputs": ({"structured_outputs": {"regex": "[ab]{5}"}}, follows("[ab]{5}")),
    "guided_json": ({"guided_json": SCHEMA}, follows(r"\[[12, ]*\]")),
    "guided_regex": ({"guided_regex": "[ab]{5}"}, follows("[ab]{5}")),
    "guided_choice": ({"guided_choice": ["はい", "いいえ"]}, follows("はい|いいえ")),
    "guided_grammar": ({"guided_grammar": 'start: "z" "y"'}, follows("zy")),
    "seed": ({"seed": 1, "temperature": 1}, differs),
    "temperature": ({"temperature": 1.5, "seed": 1}, differs),
    "top_p": ({"top_p": 1e-6, "temperature": 1, "seed": 1}, is_greedy),
    "top_k": ({"top_k": 1, "temperature": 1, "seed": 1}, is_greedy),
    "min_p": ({"min_p": 1, "temperature": 1, "seed": 1}, is_greedy),
    "return_token_ids": ({}, lambda body, _: TOKENIZER.decode(ids(body)) == text(body)),
    "request_id": ({"request_id": "mine"}, lambda body, _: body["id"].endswith("cmpl-mine")),
    "cache_salt": (  # nobody else has it: see test_server.py
        {"cache_salt": "mine"},
        lambda body, plain: (
            body["choices"] == plain["choices"]
            and body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        ),
    ),
    "ignore_eos": (
        {"ignore_eos": True, "logit_bias": {str(EOS): 100}},
        lambda body, _: ids(body) == [EOS] * 9,
    ),
    "logit_bias": (
        {"logit_bias": {str(EOS): 100}},
        lambda body, _: (
            ids(body) == [EOS]
            and text(body) == ""
            and body["choices"][0]["finish_reason"] == "stop"
            and body["choices"][0]["stop_reason"] is None  # as vLLM has it
        ),
    ),
    "stop_token_ids": (
        {"stop_token_ids": [OP], "logit_bias": {str(OP): 100}},
        lambda body, _: ids(body) == [OP] and body["choices"][0]["stop_reason"] == OP,
    ),
    "min_tokens": (
        {"min_tokens": 4, "stop_token_ids": [OP], "logit_bias": {str(OP): 100}},
        lambda body, _: len(ids(body)) == 5 and ids(body)[-1] == OP,
    ),
    "skip_special_tokens": (
        {"skip_special_tokens": False, "logit_bias": {str(OP): 100}, "ignore_eos": True},
        lambda body, _: text(body) == "<|plamo:op|>" * 9,
    ),
    "include_stop_str_in_output": (
        {"include_stop_str_in_output": True, "stop": "a", "guided_regex": "xxa(xxa)*"},
        follows("xxa"),
    ),
    "stop": (
        {"stop": ["a", "q"], "guided_regex": "xxa(xxa)*"},
        lambda body, _: (
            text(body) == "xx"
            and body["choices"][0]["stop_reason"] == "a"
            and body["choices"][0]["finish_reason"] == "stop"
        ),
    ),
}

COMPLETIONS_ALONE: dict[str, tuple[dict, Check]] = {
    "echo": ({"echo": True}, lambda body, plain: text(body) == "吾輩は" + text(plain)),
    "logprobs": (
        {"logprobs": 2},
        lambda body, _: len(body["choices"][0]["logprobs"]["top_logprobs"][0]) == 2,
    ),
    "prompt": ({"prompt": "To be"}, differs),
    "add_special_tokens": (
        {"add_special_tokens": False},
        lambda body, plain: prompt_ids(body) == prompt_ids(plain)[1:],
    ),
    "return_tokens_as_token_ids": (
        {"return_tokens_as_token_ids": True, "logprobs": 1},
        lambda body, _: (
            body["choices"][0]["logprobs"]["tokens"] == [f"token_id:{i}" for i in ids(body)]
        ),
    ),
    "prompt_logprobs": (
        {"prompt_logprobs": 1},
        lambda body, _: scores_the_prompt(prompt_ids(body), body["choices"][0]["prompt_logprobs"]),
    ),
    "best_of": ({"best_of": 2, "n": 2}, lambda body, _: len(body["choices"]) == 2),
}

CHATS_ALONE: dict[str, tuple[dict, Check]] = {
    "messages": (
        {"messages": [{"role": "user", "content": "To be"}]},
        lambda body, _: prompt_of(body) == "user: To be\nassistant:",
    ),
    "logprobs": (
        {"logprobs": True},
        lambda body, _: len(body["choices"][0]["logprobs"]["content"]) == 9,
    ),
    "top_logprobs": (
        {"logprobs": True, "top_logprobs": 3},
        lambda body, _: len(body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 3,
    ),
    "return_tokens_as_token_ids": (
        {"return_tokens_as_token_ids": True, "logprobs": True},
        lambda body, _: (
            [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]]
            == [f"token_id:{i}" for i in ids(body)]
        ),
    ),
    "prompt_logprobs": (
        {"prompt_logprobs": 1},
        lambda body, _: scores_the_prompt(body["prompt_token_ids"], body["prompt_logprobs"]),
    ),
    "add_special_tokens": (
        {"add_special_tokens": False},
        lambda body, plain: body["prompt_token_ids"] == plain["prompt_token_ids"][1:],
    ),
    "add_generation_prompt": (
        {"add_generation_prompt": False},
        lambda body, plain: prompt_of(plain) == prompt_of(body) + "assistant:",
    ),
    "continue_final_message": (
        {
            "messages": [
                {"role": "user", "content": "猫は"},
                {"role": "assistant", "content": " 吾輩 "},
            ],
            "continue_final_message": True,
        },
        lambda body, _: prompt_of(body) == "user: 猫は\nassistant:  吾輩 ",
    ),
}

# Proved elsewhere: streams below and in test_server.py, templates in test_rendering.py, tools in
# files of their own.
ELSEWHERE_TESTED = {
    "stream",
    "stream_options",
    "chat_template_kwargs",
    "documents",
    "reasoning_effort",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
}
REFUSED_TOGETHER = {"spaces_between_special_tokens"}


def prompt_ids(body: dict) -> list[int]:
    return body["choices"][0]["prompt_token_ids"]


def prompt_of(body: dict) -> str:
    return TOKENIZER.decode(body["prompt_token_ids"], skip_special_tokens=True)


def scores_the_prompt(prompt: list[int], entries: list[dict | None]) -> bool:
    first, *rest = entries
    scores = [entry[str(token)] for token, entry in zip(prompt[1:], rest, strict=True)]
    return (
        first is None
        and all(score["logprob"] <= 0 < score["rank"] for score in scores)
        and [score["decoded_token"] for score in scores]
        == [TOKENIZER.decode([token]) for token in prompt[1:]]
    )


def test_the_table_has_every_field():
    tested = {*HONOURED, *ELSEWHERE_TESTED, *REFUSED_TOGETHER}
    completion, chat = set(CompletionRequest.model_fields), set(ChatRequest.model_fields)
    assert completion - tested - set(COMPLETIONS_ALONE) == set()
    assert chat - tested - set(CHATS_ALONE) == set()
    assert not completion & set(elsewhere.COMPLETION)
    assert not chat & set(elsewhere.CHAT)


@pytest.mark.parametrize("base", [COMPLETION, CHAT], ids=["completion", "chat"])
def test_an_honoured_field_changes_the_answer_as_it_says(ask, base):
    plain = ask(**base)
    longer = ask(**base | {"max_tokens": 30})
    table = HONOURED | (COMPLETIONS_ALONE if base is COMPLETION else CHATS_ALONE)
    for name, (fields, holds) in table.items():
        body = ask(**base | fields)
        other = longer if fields.get("max_tokens") == 30 else plain
        assert holds(body, other), f"{name}: {body} beside {other}"


def test_what_vllm_adds_to_a_whole_answer_is_null_where_nobody_asked_for_it(ask):
    added = {"prompt_token_ids", "prompt_logprobs", "token_ids", "stop_reason"}
    for base, of_choice in ((COMPLETION, added), (CHAT, {"token_ids", "stop_reason"})):
        body = ask(**{name: value for name, value in base.items() if name != "return_token_ids"})
        found = [(body, added - of_choice), (body["choices"][0], of_choice)]
        assert [part[name] for part, names in found for name in names] == [None] * 4


def test_minus_nought_is_nought(ask):
    assert text(ask(**COMPLETION | {"temperature": -0.0})) == text(ask(**COMPLETION))


def test_an_echo_has_no_tokens_of_its_own(ask):
    body = ask(**COMPLETION | {"echo": True, "max_tokens": 0})
    assert (text(body), ids(body), prompt_ids(body)[1:]) == (
        "吾輩は",
        [],
        TOKENIZER.encode("吾輩は", add_bos=False),
    )


def test_an_echo_scores_the_prompt_once(client, ask):
    both = {"echo": True, "logprobs": 2, "prompt_logprobs": 2}
    body = ask(**COMPLETION | both)
    assert scores_the_prompt(prompt_ids(body), body["choices"][0]["prompt_logprobs"])
    assert len(body["choices"][0]["logprobs"]["tokens"]) == len(prompt_ids(body)) + 9
    error = refusal(client, {**COMPLETION, **both, "prompt_logprobs": 1})
    assert (error["param"], error["code"]) == ("prompt_logprobs", "invalid_combination")


# --- what is refused, and what changes nothing ----------------------------------------------------


@pytest.mark.parametrize(
    ("base", "table"),
    [(COMPLETION, elsewhere.COMPLETION), (CHAT, elsewhere.CHAT)],
    ids=["completion", "chat"],
)
def test_what_other_servers_know_is_refused_by_name_unless_it_is_neutral(client, ask, base, table):
    plain = ask(**base)["choices"]
    neutral = {name: entry.neutral[-1] for name, entry in table.items() if entry.neutral}
    harmless = {name: {"any": 1} for name, entry in table.items() if entry.whatever}
    assert ask(**base, **neutral, **harmless)["choices"] == plain
    assert ask(**base, **dict.fromkeys(table))["choices"] == plain  # null
    for name, entry in table.items():
        if entry.whatever:
            continue
        (_, wrong, *_) = [value for value in (7, "x", {"a": 1}) if not entry.takes(value)]
        error = refusal(client, {**base, name: wrong})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter"), error
        assert error["message"].startswith(f"{name}: not supported by this server")
        assert entry.advice in error["message"]


@pytest.mark.parametrize("value", [True, False, 0, 1, -1, 0.5, "", "auto", [], {}, ["x"]])
def test_only_a_neutral_value_is_neutral(value):
    for request, base in (
        (CompletionRequest, COMPLETION),
        (ChatRequest, CHAT),
        (ResponsesRequest, {"input": "x"}),
    ):
        for name, entry in request.ELSEWHERE.items():
            if entry.takes(value):
                request.model_validate({**base, name: value})
            else:
                with pytest.raises(ValidationError, match="not supported"):
                    request.model_validate({**base, name: value})
    switch = elsewhere.CHAT["echo"]
    assert (switch.takes(False), switch.takes(0), switch.takes(True)) == (True, False, False)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"max_token": 5}, "max_token", "did you mean max_tokens?"),
        ({"x" * 10_000: 1}, "x" * 64, "no such field"),
        ({"structured_outputs": {"ebnf": "x"}}, "structured_outputs", "structured_outputs.ebnf"),
        (
            {"structured_outputs": {"regexp": "x"}},
            "structured_outputs",
            "structured_outputs.regexp: there is no such field; did you mean regex?",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            "response_format",
            "response_format.schema: not supported by this server: a schema goes with the type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "a": 1}}},
            "response_format",
            "response_format.json_schema.a",
        ),
        (
            {"stream": True, "stream_options": {"include_usages": True}},
            "stream_options",
            "did you mean include_usage?",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options",
            "include_obfuscation: not supported",
        ),
    ],
)
def test_a_field_that_nobody_knows_is_named(client, fields, param, says):
    for base in (COMPLETION, CHAT):
        error = refusal(client, {**base, **fields})
        assert error["param"] == param
        assert says in error["message"]
        assert error["code"] in ("unknown_parameter", "unsupported_parameter")


def test_parts_of_messages_are_known_too(client, ask):
    message = {"role": "user", "content": "猫は"}
    harmless = {"annotations": [], "refusal": None, "audio": None, "function_call": None}
    part = {"type": "text", "text": "猫は", "cache_control": {"type": "ephemeral"}}
    same = [{**message, **harmless, "content": [part]}]
    assert ask(**CHAT | {"messages": same})["choices"] == ask(**CHAT)["choices"]
    for more, place in (
        ({"refusal": "no"}, "messages[0].refusal"),
        ({"thinking": "hm"}, "messages[0].thinking"),
        ({"content": [{"type": "text", "text": "a", "b": 1}]}, "messages[0].content[0].b"),
    ):
        error = refusal(client, {**CHAT, "messages": [{**message, **more}]})
        assert error["param"] == "messages"
        assert error["message"].startswith(place), error


def test_only_special_tokens_that_are_shown_could_have_spaces_between_them(client, ask):
    for value in (True, False):
        field = {"spaces_between_special_tokens": value}
        assert ask(**COMPLETION | field)["choices"] == ask(**COMPLETION)["choices"]
    shown = {**COMPLETION, "skip_special_tokens": False, "spaces_between_special_tokens": True}
    assert refusal(client, shown)["param"] == "spaces_between_special_tokens"


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        (
            "chat/completions",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image_url", "image_url": {"url": "data:,"}},
                        ],
                    }
                ]
            },
            "messages[0].content[1].type: the model reads text only",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "[0].content: Input"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role: Field required"),
        ("completions", {"prompt": []}, "prompt: Value should have at least 1 item"),
        ("completions", {"prompt": [[1, -2]]}, "prompt[0][1]: Input should be greater"),
        ("completions", {"prompt": [[1, "a"]]}, "prompt[0][1]: Input should be a valid integer"),
        ("completions", {"prompt": {"a": 1}}, "prompt: Input should be a valid string or list"),
        ("completions", {"prompt": "x", "stop": [1]}, "stop[0]: Input should be a valid string"),
        ("completions", {"prompt": "x", "guided_json": 5}, "guided_json: Input should be a valid"),
        (
            "completions",
            {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema: Field required",
        ),
    ],
)
def test_a_complaint_is_about_the_type_that_was_used(client, path, fields, says):
    answer = client.post(f"/v1/{path}", json={"model": "tiny", **fields})
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"], answer.text


# --- streams --------------------------------------------------------------------------------------


def chunks(client: httpx.Client, **fields: object) -> list[dict]:
    answer = client.post(path_of(fields), json={**fields, "stream": True})
    assert answer.status_code == 200, answer.text
    *blocks, last, rest = answer.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@pytest.mark.parametrize("base", [COMPLETION, CHAT], ids=["completion", "chat"])
def test_usage_comes_with_every_chunk_where_asked_for(client, base):
    """And grows with every token, which vLLM's own tests want to see."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    *parts, last = chunks(client, **base, stream_options=options)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == [*([0] if base is CHAT else []), *range(1, 10)]
    assert last["choices"] == []
    assert last["usage"] == parts[-1]["usage"]
    for part in parts:
        usage = part["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    alone = chunks(client, **base, stream_options={"continuous_usage_stats": True})
    assert [part["usage"] for part in alone] == [part["usage"] for part in [*parts, last]]
    for options in ({"include_usage": False, "continuous_usage_stats": True}, {}):
        assert not [p for p in chunks(client, **base, stream_options=options) if "usage" in p]


@pytest.mark.parametrize("base", [COMPLETION, CHAT], ids=["completion", "chat"])
def test_a_stream_has_the_token_ids_and_the_reason_of_the_whole(client, ask, base):
    fields = {**base, "n": 2, "seed": 3, "temperature": 1, "stop": ["の", "e"], "max_tokens": 40}
    whole, parts = ask(**fields), chunks(client, **fields)
    for choice in whole["choices"]:
        mine = [p for p in parts if p["choices"][0]["index"] == choice["index"]]
        first = mine[0] if base is CHAT else mine[0]["choices"][0]
        prompt = whole if base is CHAT else choice
        assert first["prompt_token_ids"] == prompt["prompt_token_ids"]
        pieces = [part["choices"][0] for part in mine]
        assert [i for piece in pieces for i in piece.get("token_ids", [])] == choice["token_ids"]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        assert pieces[-1]["stop_reason"] == choice["stop_reason"]
        assert not [p for p in pieces[:-1] if p["finish_reason"] or "stop_reason" in p]
        later = mine[1:] if base is CHAT else [part["choices"][0] for part in mine[1:]]
        assert not [part for part in later if "prompt_token_ids" in part]


def test_scores_of_a_prompt_do_not_come_in_a_stream(client):
    for base in (COMPLETION, CHAT):
        error = refusal(client, {**base, "prompt_logprobs": 1, "stream": True})
        assert (error["param"], error["code"]) == ("prompt_logprobs", "invalid_combination")


# --- names ----------------------------------------------------------------------------------------


def test_every_name_of_the_model_is_listed_and_served(client, ask):
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["tiny", "klein"]
    assert {card["root"] for card in cards} == {"tiny"}
    assert {card["max_model_len"] for card in cards} == {256}
    assert [client.get(f"/v1/models/{card['id']}").json() for card in cards] == cards
    assert client.get("/v1/models/gross").status_code == 404
    for name in ("tiny", "klein", None):
        assert ask(**COMPLETION, model=name)["model"] == "tiny"
    assert client.post("/v1/completions", json={**COMPLETION, "model": "x"}).status_code == 404


def test_a_request_keeps_the_name_that_its_client_gave_it(client):
    def named(path: str, given: str | None, **more: object) -> tuple[str, str]:
        headers = {} if given is None else {"X-Request-Id": given}
        base = CHAT if "chat" in path else COMPLETION
        answer = client.post(path, json={**base, **more}, headers=headers)
        return answer.headers["x-request-id"], answer.json()["id"]

    for path, prefix in (("/v1/completions", "cmpl-"), ("/v1/chat/completions", "chatcmpl-")):
        assert named(path, "trace/1:a=b") == ("trace/1:a=b", prefix + "trace/1:a=b")
        assert named(path, "header", request_id="body") == ("header", prefix + "header")
        assert named(path, None, request_id="body") == ("body", prefix + "body")
        header, body = named(path, None)
        assert body == prefix + header
        assert re.fullmatch("[0-9a-f]{32}", header)
        for bad in ("", "a b", "x" * 129, '"}', "a{b"):
            header, body = named(path, bad)
            assert body == prefix + header
            assert re.fullmatch("[0-9a-f]{32}", header)


def test_a_response_has_a_name_as_well_and_knows_its_fields(client):
    fields = {"input": "x", "max_output_tokens": 2}
    answer = client.post("/v1/responses", json=fields, headers={"X-Request-Id": "mine"}).json()
    assert (answer["id"], answer["model"]) == ("resp_mine", "tiny")
    again = [{**item, "id": "1"} for item in answer["output"]]  # as clients send it back
    turn = {"role": "user", "content": "y"}
    assert client.post("/v1/responses", json={**fields, "input": [*again, turn]}).status_code == 200
    for wrong in ({"max_tokens": 5}, {"return_token_ids": True}, {"max_outputs": 1}):
        error = client.post("/v1/responses", json={**fields, **wrong}).json()["error"]
        assert error["param"] in wrong
        assert "max_output_tokens" in error["message"] or "return_token_ids" in wrong


def test_refusals_have_a_name_too(client):
    headers = {"X-Request-Id": "mine"}
    for answer in (
        client.post("/v1/completions", content=b"{", headers=headers),
        client.get("/nowhere", headers=headers),
        client.get("/health", headers=headers),
    ):
        assert answer.headers["x-request-id"] == "mine"
    assert refusal(client, {**COMPLETION, "request_id": "a b"})["param"] == "request_id"


# --- /tokenize ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_special_tokens": False},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"messages": [{"role": "developer", "content": "kurz"}, *CHAT["messages"]]},
    ],
)
def test_a_conversation_is_tokenized_as_the_chat_does(client, ask, fields):
    chat = ask(**CHAT | fields)
    asked = {"messages": CHAT["messages"], **fields}
    tokens = client.post("/tokenize", json=asked).json()
    assert tokens["tokens"] == chat["prompt_token_ids"]
    assert tokens["count"] == chat["usage"]["prompt_tokens"]


def test_a_text_is_tokenized_without_a_template(client):
    for field in ({"add_generation_prompt": True}, {"documents": []}, {"messages": []}):
        answer = client.post("/tokenize", json={"prompt": "x", **field})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in (*field, "messages")
    answer = client.post("/tokenize", json={"prompt": "x", "add_special_token": False})
    assert "did you mean add_special_tokens?" in answer.json()["error"]["message"]
