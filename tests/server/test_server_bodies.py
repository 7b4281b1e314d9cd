"""Bodies that cost more than they are worth: hostile, careless, or simply large.

Invariant tested: whatever a body of up to 4 MiB says, the server goes on answering others, its
memory comes back, and the client reads in one line what is wrong; without a key, nothing of a body
is read.
"""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from servers import RunningServer, running_server
from starlette.responses import JSONResponse
from test_server import refused

from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge.bodies import MAX_DEPTH, MAX_DIGITS, bounded_route, parse, shape_of
from plamo_ref.server.edge.listen import Address
from plamo_ref.server.edge.strict import MAX_ITEMS, Strict
from plamo_ref.server.errors import MAX_MESSAGE, ApiError, shortened
from plamo_ref.server.openai import schemas
from plamo_ref.server.run import serve

KEY = "geheim"
MOST = 4 << 20  # bytes of a body
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# A stall that a client would notice; before bodies were counted first, these took minutes.
STALL_SECONDS = 3.0


# --- what a body will become ----------------------------------------------------------------------

texts = st.text(alphabet='a"\\[]{},:é🙂\n')
json_values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


def measured(value: Any) -> tuple[int, int]:
    """Commas and brackets of a value, and how deep it nests."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = list(value.values()) if isinstance(value, dict) else value
    counts, depths = zip(*[measured(item) for item in inner], strict=True) if inner else ((), ())
    return 1 + max(0, len(inner) - 1) + sum(counts), 1 + max(depths, default=0)


@given(json_values, st.booleans())
def test_the_shape_is_that_of_the_value(value, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    shape = shape_of(data)
    assert (shape.values, shape.depth) == measured(value)
    assert parse(data, max_values=1000) == value


def test_texts_that_cross_the_blocks_are_still_texts():
    value = {"a": ["[,{" * 50_000, 5, 'b"\\' * 30_000], "c": [[1, 2, 3]]}
    shape = shape_of(json.dumps(value).encode())
    assert (shape.values, shape.depth) == measured(value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"seed": ' + b"1" * 5000 + b"}", "5,000 digits"),
        (b'{"seed": -' + b"1" * (MAX_DIGITS + 1) + b"}", "101 digits"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": [Infinity]}', "Infinity"),
        (b'{"a": {"b": -Infinity}}', "-Infinity"),
        (b'{"model": "a", "n": 1, "model": "b"}', "'model' is there twice"),
        (b'{"x": [{"y": 1, "y": 1}]}', "'y' is there twice"),
        (b"[" * 5000 + b"]" * 5000, "nests 5,000 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nests 101 levels"),
        (b'{"a":' * 90_000, "nests 90,000 levels"),
        (b'{"prompt": "a\\ud800b"}', "'\\ud800' at character 1"),
        (b'{"prompt": ["a", "\\udc00\\ud800"]}', "'\\udc00' at character 0"),
        (b'{"\\ud83d": 1}', "'\\ud83d' at character 0"),
        (b'{"a": "\xed\xa0\x80"}', "byte 7 is not UTF-8"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 0 is not UTF-8"),
        (b'{"a": 1', "at character 7"),
        (b"{'a': 1}", "at character 1"),
        (b"", "at character 0"),
        (b'{"a": 01}', "at character"),
        (b'{"a": 1}}', "at character 8"),
        (b"[" + b"1," * 1000 + b"1]", "1,001 values, at most 1,000"),
    ],
)
def test_what_is_not_plain_json_is_refused_by_name(body, says):
    with pytest.raises(ApiError, match=re.escape(says)) as refusal:
        parse(body, max_values=1000)
    assert refusal.value.status == 400
    assert refusal.value.code in ("invalid_json", "body_too_complex")


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": "\\ud83d\\ude42 \\\\ud800"}', {"a": "🙂 \\ud800"}),
        (b'{"seed": 1' + b"0" * 30 + b"}", {"seed": 10**30}),
        (b'{"a": "' + b"7" * 5000 + b'", "b": 7}', {"a": "7" * 5000, "b": 7}),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
    ],
)
def test_what_is_unusual_and_right_is_read(body, value):
    assert parse(body, max_values=1000) == value or value is None


# --- the first mistake is enough ------------------------------------------------------------------


def request_models() -> list[type[Strict]]:
    found = [Strict]
    for model in found:
        found += [m for m in model.__subclasses__() if m not in found]
    return found[1:]


def parts_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema of pydantic's core."""
    if isinstance(schema, dict):
        yield schema
        for name, part in schema.items():
            if name not in ("metadata", "serialization"):
                yield from parts_of(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from parts_of(part)


def test_every_list_and_map_of_every_request_is_bounded():
    seen = set()
    for model in request_models():
        for part in parts_of(model.__pydantic_core_schema__):
            kind = part.get("type")
            numbers = kind == "list" and part["items_schema"].get("type") == "int"
            if kind in ("list", "dict"):
                seen.add(kind)
                assert numbers or part["max_length"] <= schemas.SOME_IDS, (model, part)
            assert kind != "list" or part["fail_fast"], (model, part)
    assert seen == {"list", "dict"}


MANY = 20_000
WRONG: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "messages that are none": (schemas.ChatRequest, {"messages": [0] * MAX_ITEMS}),
    "too many messages": (
        schemas.ChatRequest,
        {"messages": [{"role": "user", "content": "a"}] * (MAX_ITEMS + 1)},
    ),
    "parts that are none": (
        schemas.ChatRequest,
        {"messages": [{"role": "user", "content": [{}] * MAX_ITEMS}] * 9},
    ),
    "prompts of two kinds": (schemas.CompletionRequest, {"prompt": ["", 0] * 4000}),
    "prompts of prompts": (schemas.CompletionRequest, {"prompt": [[""]] * MAX_ITEMS}),
    "ids that are none": (schemas.CompletionRequest, {"prompt": [1, -1] * MANY}),
    "stops": (schemas.CompletionRequest, {"prompt": "", "stop": [0] * MAX_ITEMS}),
    "stop ids": (schemas.CompletionRequest, {"prompt": "", "stop_token_ids": ["a"] * MANY}),
    "biases": (
        schemas.CompletionRequest,
        {"prompt": "", "logit_bias": {str(i): "x" for i in range(MANY)}},
    ),
    "biases too large": (
        schemas.CompletionRequest,
        {"prompt": "", "logit_bias": {str(i): 101 for i in range(MANY)}},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_of_thousands_of_mistakes_few_are_collected(name):
    model, fields = WRONG[name]
    with pytest.raises(ValidationError) as found:
        model.model_validate({"model": "tiny", **fields})
    assert found.value.error_count() <= 8  # of the alternatives of a field, one each


@given(st.text(), st.integers(2, 40))
def test_a_message_is_shortened_in_its_middle(text, most):
    short = shortened(text, most)
    assert len(short) == min(len(text), most)
    if len(text) > most:
        begin, end = short.split("…")[0], short.split("…")[-1]
        assert text.startswith(begin)
        assert text.endswith(end)


class Ids(BaseModel):
    ids: list[int]


@pytest.mark.parametrize(("max_values", "context", "most"), [(4, 9, 8), (9, 4, 8)])
def test_a_prompt_of_ids_may_be_as_long_as_the_context_whatever_the_bound(
    max_values, context, most
):
    """A bracket or comma counts one: so many ids and the object around them."""
    config = ServerConfig(model_name="tiny", max_values=max_values)
    service = SimpleNamespace(config=config, llm=SimpleNamespace(max_model_len=context))
    app = FastAPI()
    app.router.route_class = bounded_route(service)  # type: ignore[arg-type]

    @app.post("/")
    async def count(body: Ids) -> JSONResponse:
        return JSONResponse(len(body.ids))

    async def ask(number: int) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return (await client.post("/", json={"ids": [1] * number})).json()

    assert asyncio.run(ask(most)) == most
    with pytest.raises(ApiError, match=f"has {most + 2} values, at most {most + 1} may be"):
        asyncio.run(ask(most + 1))


# --- the server, meanwhile ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with server.client(headers=headers) as client:
        yield client


@contextmanager
def watched(server: RunningServer) -> Iterator[None]:
    """Others are answered, and the memory comes back."""
    front = psutil.Process(server.process.pid)
    begun, done, waits = threading.Event(), threading.Event(), []

    def ask() -> None:
        with server.client() as other:
            while not done.is_set():
                began = time.monotonic()
                assert other.get("/health").status_code == 200
                waits.append(time.monotonic() - began)
                begun.set()
                time.sleep(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(20)
    before = front.memory_info().rss
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert max(waits) < STALL_SECONDS
    assert front.memory_info().rss - before < 100 << 20


def filled(head: str, item: str, tail: str, size: int = MOST - 100) -> bytes:
    """A body of that size: `item` again and again between two parts."""
    count = (size - len(head) - len(tail)) // len(item.encode())
    return (head + (item * count).removesuffix(",") + tail).encode()


START = '{"model":"tiny","max_tokens":1,'
HOSTILE = {
    "messages that are none": (CHAT, filled(START + '"messages":[', "0,", "]}")),
    "messages that are empty": (CHAT, filled(START + '"messages":[', "{},", "]}")),
    "messages without end": (
        CHAT,
        filled(START + '"messages":[', '{"role":"user","content":"a"},', "]}"),
    ),
    "prompts of two kinds": (COMPLETIONS, filled(START + '"prompt":[', '"",0,', "]}")),
    "prompts without end": (COMPLETIONS, filled(START + '"prompt":[', '"a",', "]}")),
    "prompts in prompts": (COMPLETIONS, filled(START + '"prompt":[', '[""],', "]}", 1 << 19)),
    "biases": (
        COMPLETIONS,
        json.dumps(
            {"model": "tiny", "prompt": "a", "logit_bias": {str(i): "x" for i in range(120_000)}}
        ).encode(),
    ),
    "unknown and wide": (COMPLETIONS, filled(START + '"prompt":"a","x":[', "[],", "]}")),
    "deep": (COMPLETIONS, filled(START + '"prompt":"a","x":', "[", "")),
    "digits": (COMPLETIONS, filled(START + '"prompt":"a","x":[', "1" * 4000 + ",", "]}")),
    "ids": (COMPLETIONS, filled(START + '"prompt":[', "5,", "]}", 1 << 18)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_while_a_hostile_body_is_refused_others_are_served(server, client, name):
    path, body = HOSTILE[name]
    assert len(body) <= MOST
    with watched(server):
        answer = client.post(path, content=body)
    error = refused(answer, 400, answer.json()["error"]["param"])
    assert len(error["message"]) <= MAX_MESSAGE


def test_while_long_texts_become_tokens_others_are_served(server, client):
    text = "吾輩は猫である。 To be, or not " * 4000
    with watched(server):
        found = client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        back = client.post("/detokenize", json={"tokens": found["tokens"][1:]}).json()
    assert back == {"prompt": text}
    assert "".join(found["token_strs"][1:]) == text


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        (COMPLETIONS, {"model": "x" * 1_000_000, "prompt": "a"}, 404, "model"),
        (COMPLETIONS, {"logit_bias": {"é" * 500_000: 1}, "prompt": "a"}, 400, "logit_bias"),
        (CHAT, {"messages": [{"role": "x" * 1_000_000, "content": 5}]}, 400, "messages"),
        (COMPLETIONS, {"response_format": {"type": "x" * 1_000_000}, "prompt": "a"}, 400, None),
    ],
)
def test_what_was_sent_is_not_sent_back_at_length(client, path, fields, status, param):
    answer = client.post(path, json={"model": "tiny", **fields})
    refused(answer, status, param or answer.json()["error"]["param"])
    assert len(answer.content) < 8000


def test_choices_times_prompts_are_bounded(client):
    body = {"model": "tiny", "prompt": [[5] * 7000] * 8, "n": 64, "max_tokens": 1}
    error = refused(client.post(COMPLETIONS, json=body), 400, "n")
    assert error["code"] == "invalid_combination"
    assert "16,777,216" in error["message"]


def test_the_document_says_how_long_lists_may_be(client):
    components = client.get("/openapi.json").json()["components"]["schemas"]
    messages = components["ChatRequest"]["properties"]["messages"]
    assert (messages["minItems"], messages["maxItems"]) == (1, MAX_ITEMS)
    bias = components["CompletionRequest"]["properties"]["logit_bias"]["anyOf"][0]
    assert bias["maxProperties"] == schemas.SOME_IDS


def test_a_long_answer_is_the_same_whole_and_in_parts(client):
    fields = {"model": "tiny", "prompt": "吾輩は", "n": 11, "max_tokens": 94, "ignore_eos": True}
    fields |= {"temperature": 0, "logprobs": 1}
    whole = client.post(COMPLETIONS, json=fields)
    assert whole.headers["content-type"] == "application/json"
    parts: dict[int, str] = {}
    for line in client.post(COMPLETIONS, json={**fields, "stream": True}).text.splitlines():
        if line.startswith("data: {"):
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            parts[choice["index"]] = parts.get(choice["index"], "") + choice["text"]
    choices = whole.json()["choices"]
    assert {choice["index"]: choice["text"] for choice in choices} == parts
    assert all(len(choice["logprobs"]["tokens"]) == 94 for choice in choices)
    assert whole.json()["usage"]["completion_tokens"] == 1034


# --- without a key --------------------------------------------------------------------------------


def connected(server: RunningServer, *headers: str) -> socket.socket:
    """A connection on which the head of a request with a large body has been sent, and no more."""
    place = urlsplit(server.address)
    connection = socket.create_connection((place.hostname, place.port), timeout=20)
    head = (f"POST {COMPLETIONS} HTTP/1.1", "Host: x", f"Content-Length: {MOST}", *headers)
    connection.sendall("\r\n".join((*head, "", "")).encode())
    return connection


@pytest.mark.parametrize("key", [(), ("Authorization: Bearer wrong",)])
def test_without_the_key_the_answer_comes_before_the_body(server, key):
    with connected(server, *key) as connection:
        said = connection.recv(65536).decode()
        while not said.endswith("}"):
            said += connection.recv(65536).decode()
    assert said.startswith("HTTP/1.1 401")
    assert "connection: close" in said.lower()
    assert "invalid_api_key" in said


def test_without_the_key_the_body_is_not_even_asked_for(server):
    with connected(server, "Expect: 100-continue") as connection:
        said = b""
        while part := connection.recv(65536):  # to the end: the server closes
            said += part
    assert said.startswith(b"HTTP/1.1 401")
    assert b"100 Continue" not in said


def test_who_sends_the_body_all_the_same_gets_to_read_why(server):
    with server.client(headers={"Content-Type": "application/json"}) as stranger:
        for _ in range(3):
            answer = stranger.post(COMPLETIONS, content=b"x" * MOST)
            assert refused(answer, 401)["code"] == "invalid_api_key"


# --- while there is no engine yet -----------------------------------------------------------------


def test_while_the_engine_starts_health_says_so_and_a_signal_ends_it(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def never(_: AsyncLLM) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(AsyncLLM, "start", never)

    async def run() -> None:
        config = ServerConfig(model_name="tiny")
        serving = asyncio.create_task(serve(AsyncLLM("tiny"), config, address=Address(port=port)))
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client:
            health = await client.get("/health")
            body = {"model": "tiny", "prompt": "x"}
            early = await client.post(COMPLETIONS, json=body)
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        assert (early.status_code, early.headers["retry-after"]) == (503, "2")
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await serving

    asyncio.run(run())
