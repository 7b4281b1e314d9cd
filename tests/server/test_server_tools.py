"""Tools and /v1/responses over HTTP, with other people's clients, unchanged.

Invariant tested: a call that was asked for comes, with arguments that fit; a streamed answer is the
unstreamed one, in the openai package, LangChain and pydantic-ai; what a template or this server
cannot honour is refused by name.

The clients are imported where they are used, as in test_server_clients.py.
"""

import asyncio
import importlib
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel, Field
from servers import RunningServer, running_server

from plamo_ref.remote.calls import Delta, EngineDiedError
from plamo_ref.server.openai.responses import Responding, head_of
from plamo_ref.server.openai.responses_schemas import ResponsesRequest
from plamo_ref.server.openai.usage import Usage
from plamo_ref.server.prompt.turn import Turn
from plamo_ref.server.tools.reader import Piece

TEMPLATE = Path(__file__).parents[1] / "tools.jinja"
MESSAGES = [{"role": "user", "content": "How will the weather be?"}]
WEATHER = {
    "name": "weather",
    "description": "What the weather will be.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Tokyo", "京都"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
    },
}
TOOLS = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}
CHAT = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 300, "seed": 1}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Tokyo", "京都"]
    days: int = Field(ge=1, le=9)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--chat-template", str(TEMPLATE), "--max-model-len", "1500")
    with running_server(tmp_path_factory.mktemp("server"), *options) as running:
        yield running
        running.wait_until_idle()


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def openai() -> ModuleType:
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def client(openai: ModuleType, server: RunningServer) -> Iterator[Any]:
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(
            base_url=f"{server.address}/v1", api_key="none", max_retries=0, http_client=http
        ) as made,
    ):
        yield made


def fits(name: str, arguments: str) -> bool:
    given = json.loads(arguments)
    return given == {} if name == "now" else bool(Weather.model_validate(given))


def spelt(*calls: tuple[str, str]) -> str:
    """A regex for calls as the template's form writes them."""
    each = [
        f'<tool_call>\n{{"name": "{name}", "arguments": {given}}}\n</tool_call>'
        for name, given in calls
    ]
    return "\n".join(each).replace("{", r"\{").replace("}", r"\}")


# --- chats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tool_choice": NAMED}, {"weather"}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {"weather", "now"}),
        ({"extra_body": {"guided_regex": "Hm\\. " + spelt(("now", "{}"))}}, {"now"}),
        (
            {
                "tool_choice": "auto",
                "extra_body": {
                    "guided_regex": spelt(("weather", '{"city": "京都", "days": 2}'), ("now", "{}"))
                },
            },
            {"weather", "now"},
        ),
        ({"tool_choice": "none", "max_tokens": 5}, set()),
        ({"max_tokens": 5}, set()),
        ({"max_tokens": 5, "parallel_tool_calls": False}, set()),
        ({"tool_choice": NAMED, "n": 2, "response_format": {"type": "json_object"}}, {"weather"}),
    ],
)
def test_openai_gets_calls_whole_and_streamed_alike(client, fields, names):
    whole = client.chat.completions.create(**CHAT | fields)
    for choice in whole.choices:
        made = choice.message.tool_calls or []
        assert {call.function.name for call in made} <= names
        assert bool(made) == bool(names)
        assert all(call.type == "function" and call.id.startswith("call_") for call in made)
        assert all(fits(call.function.name, call.function.arguments) for call in made)
        assert choice.finish_reason == ("tool_calls" if names else "length")
        assert choice.message.content is not None or names
    content = {choice.index: "" for choice in whole.choices}
    made = {choice.index: [] for choice in whole.choices}
    ends = {}
    for chunk in client.chat.completions.create(**CHAT | fields, stream=True):
        (part,) = chunk.choices
        content[part.index] += part.delta.content or ""
        for call in part.delta.tool_calls or []:
            if call.id is not None:
                assert (call.index, call.type) == (len(made[part.index]), "function")
                made[part.index].append([call.function.name, ""])
            made[part.index][call.index][1] += call.function.arguments or ""
        ends[part.index] = part.finish_reason
    for choice in whole.choices:
        calls = choice.message.tool_calls or []
        assert made[choice.index] == [[c.function.name, c.function.arguments] for c in calls]
        assert content[choice.index] == (choice.message.content or "")
        assert ends[choice.index] == choice.finish_reason


def test_arguments_are_streamed_in_pieces(client):
    pieces = [
        call.function.arguments
        for chunk in client.chat.completions.create(**CHAT, tool_choice=NAMED, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert pieces[0] == ""  # with the name
    assert len(pieces) > 5


def test_openais_own_helpers_parse_calls(openai, client):
    tools = [openai.pydantic_function_tool(Weather)]
    fields = {**CHAT, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    parsed = client.chat.completions.parse(**fields)
    (call,) = parsed.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    with client.chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.parsed_arguments == call.function.parsed_arguments
    assert final.finish_reason == "tool_calls"


def test_a_chat_goes_on_after_a_call(client, http):
    call = client.chat.completions.create(**CHAT, tool_choice=NAMED).choices[0].message
    later = [
        *MESSAGES,
        call.to_dict(),
        {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"},
    ]
    shown = prompt(http, later)
    assert '"name": "weather", "arguments": {"city": ' in shown
    assert "tool: sunny" in shown
    assert client.chat.completions.create(**{**CHAT, "messages": later, "max_tokens": 3}).choices


def prompt(http: httpx.Client, messages: list[dict]) -> str:
    tokens = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    return http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


def test_arguments_that_are_no_object_are_shown_as_they_are(http):
    for arguments, shown in (('{"a"', '"{\\"a\\""'), ("[1]", '"[1]"'), ("", '""')):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        said = prompt(http, [{"role": "assistant", "content": None, "tool_calls": [call]}])
        assert f'"arguments": {shown}}}' in said


def test_tools_are_shown_to_the_model_unless_it_may_call_none(client, http):
    def size(**fields: object) -> int:
        return client.chat.completions.create(
            **{**CHAT, "max_tokens": 1, **fields}
        ).usage.prompt_tokens

    told = {"messages": MESSAGES, "tools": TOOLS}
    assert http.post("/tokenize", json=told).json()["count"] == size()
    assert size() > size(tools=[]) + 50
    assert size() == size(tool_choice=NAMED, max_tokens=9)
    assert size(tool_choice="none") == size(tools=[])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "invalid_combination"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice", "invalid_combination"),
        ({"tools": [TOOLS[1]], "tool_choice": NAMED}, "tool_choice", "invalid_combination"),
        ({"tools": [TOOLS[1]] * 2}, "tools", "invalid_combination"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", None),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", None),
        ({"tools": [{"type": "retrieval"}]}, "tools", None),
        ({"tools": [TOOLS[1]] * 129}, "tools", None),
        ({"tool_choice": "always"}, "tool_choice", None),
        ({"tool_choice": NAMED, "guided_regex": "a"}, "tools", "invalid_combination"),
        ({"parallel_tool_calls": False, "guided_regex": "a"}, "tools", "invalid_combination"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "function_call": {"name": "f"}}]},
            "messages",
            "unsupported_parameter",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
                ],
            },
            "tools",
            "unsupported_grammar",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"properties": {"a": {"type": "string", "pattern": "("}}},
                        },
                    }
                ],
            },
            "tools",
            "unsupported_grammar",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(http, fields, param, code):
    answer = http.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_langchain_binds_tools_streams_calls_and_gets_structures(server):
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def weather(city: Literal["Tokyo", "Kyoto"], days: Literal[1, 2, 3]) -> str:
        """What the weather will be."""
        return "sunny"

    with httpx.Client(trust_env=False) as http:
        chat = ChatOpenAI(
            model="tiny",
            base_url=f"{server.address}/v1",
            api_key="none",  # type: ignore[arg-type]
            seed=2,
            max_tokens=200,  # type: ignore[call-arg]
            max_retries=0,
            http_client=http,
        )
        asked = [HumanMessage("How is the weather in Kyoto?")]
        for choice in ("any", "weather"):
            bound = chat.bind_tools([weather], tool_choice=choice, parallel_tool_calls=False)
            answer = bound.invoke(asked)
            (call,) = answer.tool_calls
            assert (call["name"], answer.invalid_tool_calls) == ("weather", [])
            said = weather.invoke(call)
            assert (type(said), said.content) == (ToolMessage, "sunny")
            whole: AIMessage | None = None
            for part in bound.stream(asked):
                whole = part if whole is None else whole + part
            assert [c["args"] for c in whole.tool_calls] == [call["args"]]
        later = chat.bind(max_tokens=3).bind_tools([weather]).invoke([*asked, answer, said])
        assert later.content
        structured = chat.with_structured_output(Weather, method="function_calling")
        assert isinstance(structured.invoke(asked), Weather)


# --- pydantic-ai, which forces its answers through tools ------------------------------------------


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai_gets_its_typed_answer_and_calls_tools(openai, server, kind):
    from pydantic_ai import Agent, UsageLimits
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers.openai import OpenAIProvider

    async def converse() -> None:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(
                base_url=f"{server.address}/v1", api_key="none", max_retries=0, http_client=http
            ) as client,
        ):
            model = getattr(models, kind)("tiny", provider=OpenAIProvider(openai_client=client))
            settings = {"max_tokens": 300, "parallel_tool_calls": False, "extra_body": {"seed": 1}}
            agent = Agent(model, output_type=Weather, model_settings=settings, retries=0)
            answer = await agent.run("The weather?")
            assert isinstance(answer.output, Weather)
            async with agent.run_stream("The weather?") as streamed:
                assert await streamed.get_output() == answer.output
            asked = []

            @agent.tool_plain
            def ask(city: Literal["Tokyo", "京都"]) -> str:
                """Ask somebody who is there."""
                asked.append(city)
                return "dry"

            limits = UsageLimits(request_limit=20)
            answer = await agent.run("The weather?", usage_limits=limits)
            assert isinstance(answer.output, Weather)

    asyncio.run(converse())


# --- /v1/responses --------------------------------------------------------------------------------

ASK = {"model": "tiny", "max_output_tokens": 12, "extra_body": {"seed": 3}}
FUNCTIONS = [{"type": "function", **WEATHER, "strict": None}]


def streamed(client: Any, **fields: object) -> list:
    """The events, whose order is checked: each item from its beginning to its end."""
    events = list(client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0].response.status == "in_progress"
    items, texts = {}, {}
    for event in events[2:-1]:
        name = event.type.removeprefix("response.")
        if name == "output_item.added":
            assert event.output_index == len(items)
            assert all(item.status == "completed" for item in items.values())
            items[event.output_index] = event.item
            texts[event.output_index] = ""
        elif name == "output_item.done":
            assert event.item.id == items[event.output_index].id
            items[event.output_index] = event.item
        else:
            assert event.item_id == items[event.output_index].id
            if name.endswith(".delta"):
                texts[event.output_index] += event.delta
            elif name == "output_text.done":
                assert event.text == texts[event.output_index]
            elif name == "function_call_arguments.done":
                assert event.arguments == texts[event.output_index]
            else:
                assert name in ("content_part.added", "content_part.done")
                said = event.part.text
                assert said == (texts[event.output_index] if name.endswith("done") else "")
    last = events[-1].response
    assert events[-1].type == f"response.{last.status}"
    assert last.output == [items[index] for index in sorted(items)]
    assert last.id == events[0].response.id
    return events


def plain(response: object) -> dict:
    """Without what is different each time."""
    body = response.to_dict()
    for item in body["output"]:
        item.pop("id")
        item.pop("call_id", None)
    body["usage"].pop("input_tokens_details")  # the second one finds what the first has left
    return {name: value for name, value in body.items() if name not in ("id", "created_at")}


def test_a_response_is_the_chats_answer(client):
    ask = {**ASK, "instructions": "Be brief.", "input": "How is the weather?"}
    response = client.responses.create(**ask, metadata={"a": "b"})
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is the weather?"},
    ]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, seed=3)
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert (response.object, response.model, response.metadata) == ("response", "tiny", {"a": "b"})
    assert response.instructions == "Be brief."
    assert (response.usage.input_tokens, response.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        12,
    )
    assert response.store is False
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "incomplete")


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "How is the weather?"},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hm?"}]}]},
        {
            "input": "Hm?",
            "top_logprobs": 2,
            "include": ["message.output_text.logprobs"],
            "temperature": 0,
        },
        {"input": "Hm?", "text": {"format": {"type": "text"}}, "store": True, "top_p": 0.9},
        {
            "input": "Hm?",
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "answer",
                    "description": "Yes or no.",
                    "schema": {"type": "boolean"},
                    "strict": True,
                }
            },
        },
        {
            "input": "Hm?",
            "tools": FUNCTIONS,
            "tool_choice": {"type": "function", "name": "weather"},
            "max_output_tokens": 300,
        },
        {
            "input": "Hm?",
            "tools": FUNCTIONS,
            "extra_body": {
                "guided_regex": "Hm\\. "
                + spelt(("weather", '{"city": "京都", "days": 2}'))
                + "So\\."
            },
            "max_output_tokens": 300,
        },
        {"input": "Hm?", "extra_body": {"guided_choice": ["はい"]}, "instructions": None},
    ],
)
def test_a_streamed_response_ends_with_the_whole(client, fields):
    whole = client.responses.create(**ASK | fields)
    events = streamed(client, **ASK | fields)
    assert plain(events[-1].response) == plain(whole)
    if fields.get("top_logprobs"):
        scores = whole.output[0].content[0].logprobs
        assert len(scores) == 12
        assert [len(score.top_logprobs) for score in scores] == [2] * 12
        parts = [s for e in events if e.type == "response.output_text.delta" for s in e.logprobs]
        assert [part.token for part in parts] == [score.token for score in scores]
    if "tools" in fields:
        calls = [item for item in whole.output if item.type == "function_call"]
        assert calls
        assert all(fits(call.name, call.arguments) for call in calls)
        assert whole.status == "completed"
    if "guided_regex" in fields.get("extra_body", {}):
        assert [item.type for item in whole.output] == ["message", "function_call", "message"]
        assert whole.output_text == "Hm.So."


def test_a_response_in_json_is_parsed(client):
    parsed = client.responses.parse(
        **ASK | {"max_output_tokens": 200}, input="Hm?", text_format=Weather
    )
    assert isinstance(parsed.output_parsed, Weather)
    with client.responses.stream(
        **ASK | {"max_output_tokens": 200}, input="Hm?", text_format=Weather
    ) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    form = {"format": {"type": "json_object"}}
    answer = client.responses.create(
        **ASK, input=[{"role": "user", "content": "How much ?"}], text=form
    )
    assert answer.output_text.startswith("{")


def test_what_came_of_calls_goes_back_as_input(client, http):
    ask = {**ASK, "tools": FUNCTIONS, "max_output_tokens": 200}
    first = client.responses.create(
        **ask, input="Hm?", tool_choice={"type": "function", "name": "weather"}
    )
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    asked = [{"role": "user", "content": "Hm?"}, *first.output]
    second = client.responses.create(**ask | {"max_output_tokens": 3}, input=[*asked, result])
    function = {"name": call.name, "arguments": call.arguments}
    messages = [
        {"role": "user", "content": "Hm?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
    ]
    chat = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=3, tools=[TOOLS[0]], seed=3
    )
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens


def test_what_an_assistant_said_and_called_is_one_turn(client):
    said = {"role": "assistant", "content": "Hm."}
    call = {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"}
    items = [{"role": "user", "content": "a"}, said, call, {**call, "call_id": "2"}]
    response = client.responses.create(**ASK, input=items)
    calls = [
        {"id": i, "type": "function", "function": {"name": "now", "arguments": "{}"}} for i in "12"
    ]
    chat = client.chat.completions.create(
        model="tiny", messages=[items[0], {**said, "tool_calls": calls}], max_tokens=1
    )
    assert response.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 5000}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": "x" * 100_000}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"text": {"verbosity": "low"}}, "text"),
        ({"temperature": -1}, "temperature"),
        ({"stream": True, "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_what_a_response_cannot_have_is_refused_by_name(http, fields, param):
    answer = http.post("/v1/responses", json={"model": "tiny", "input": "Hm?"} | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_stream_of_responses_is_framed_with_names(http):
    fields = {"model": "tiny", "input": "Hm?", "max_output_tokens": 2, "stream": True}
    answer = http.post("/v1/responses", json=fields)
    *blocks, rest = answer.text.split("\n\n")
    assert rest == ""
    for block in blocks:
        name, data = block.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
    assert http.post("/v1/responses", json=fields | {"guided_regex": "("}).status_code == 400


class BrokenChat:
    """A chat whose engine ends, after so many batches."""

    def __init__(self, num_batches: int) -> None:
        self.turns, self._num_batches = [Turn(None)], num_batches
        self.usage = Usage(1, 1)

    async def deltas(self, *, whole: bool) -> AsyncGenerator[list[Delta], None]:
        for _ in range(self._num_batches):
            yield [Delta(0, 1, "a", first=True)]
        raise EngineDiedError("the engine is gone")

    def logprobs(self, parts: list[Delta]) -> None:
        return None

    def read(self, delta: Delta) -> list[Piece]:
        return self.turns[0].read(delta)


def test_a_response_that_breaks_off_ends_with_the_reason():
    async def events(num_batches: int) -> list[dict]:
        request = ResponsesRequest(model="tiny", input="Hm?")
        chat, head = BrokenChat(num_batches), head_of(request, "tiny", "1")
        responding = Responding(request, chat, head)  # type: ignore[arg-type]
        return [dict(event) async for batch in responding.events() for event in batch]

    made = asyncio.run(events(1))
    last = made[-1]
    assert [event["type"].removeprefix("response.") for event in made[4:]] == [
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "failed",
    ]
    response = last["response"]
    (item,) = response.output
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "a")
    assert response.error["message"] == "the engine is gone"
    assert (response.status, last["sequence_number"]) == ("failed", len(made) - 1)
    with pytest.raises(EngineDiedError):  # an ordinary answer can still say it
        asyncio.run(events(0))
