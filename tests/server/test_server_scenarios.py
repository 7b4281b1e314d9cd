"""What clients do to a server: hang up, come in crowds, send too much, pull the plug.

Invariant tested: a streamed text is the unstreamed one; whatever happens, every request ends, with
text or with an error that says why, and the engine is left holding nothing.

SCENARIO_SCALE multiplies the crowds: 1 here; 10 is 500 requests at a time and 2,000 aborts.
"""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from servers import RunningServer, running_server

from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge.listen import Address
from plamo_ref.server.run import serve

SCALE = int(os.environ.get("SCENARIO_SCALE", "1"))
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True}
LONG = {**GREEDY, "prompt": "吾輩は", "max_tokens": 8_000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running
        running.wait_until_idle()


@pytest.fixture(autouse=True)
def _left_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").wait_until_idle()


def choices(text: str) -> list[dict]:
    blocks = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert blocks[-1] == "[DONE]", blocks[-1]
    return [choice for block in blocks[:-1] for choice in json.loads(block)["choices"]]


def both_ways(server: RunningServer, **fields: object) -> list[dict]:
    """The choices of an answer, after comparing them with the same asked as a stream."""
    body = {**GREEDY, **fields}
    with server.client() as client:
        whole = client.post("/v1/completions", json=body)
        assert whole.status_code == 200, whole.text
        parts = choices(client.post("/v1/completions", json={**body, "stream": True}).text)
    answered = whole.json()["choices"]
    for choice in answered:
        mine = [part for part in parts if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        reasons = [part["finish_reason"] for part in mine if part["finish_reason"]]
        assert reasons == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert {part["index"] for part in parts} == {choice["index"] for choice in answered}
    return answered


# --- a stream is the whole, in parts --------------------------------------------------------------


def test_a_stream_joined_is_the_whole(server):
    (choice,) = both_ways(server, prompt="To be, or", max_tokens=40)
    assert choice["text"]


def test_characters_of_several_tokens_arrive_whole(server):
    byte_ids = tokens_of(server, "🫠")
    assert len(byte_ids) == 4
    bias = {str(token): 40 for token in byte_ids}
    (choice,) = both_ways(server, prompt="x", max_tokens=24, logit_bias=bias, temperature=1, seed=4)
    assert choice["text"]
    # A grammar makes the model spell out exactly this, byte by byte.
    (spelt,) = both_ways(server, prompt="x", max_tokens=40, guided_choice=["🫠é🫠鰮🫠"])
    assert spelt["text"] == "🫠é🫠鰮🫠"


def tokens_of(server: RunningServer, text: str) -> list[int]:
    with server.client() as client:
        body = {"prompt": text, "add_special_tokens": False}
        return client.post("/tokenize", json=body).json()["tokens"]


def test_stop_strings_that_are_split_over_tokens_end_the_text_before_them(server):
    (whole,) = both_ways(server, prompt="吾輩は", max_tokens=60, temperature=1, seed=2)
    text = whole["text"]
    for start, length in ((4, 1), (7, 3), (12, 6)):
        stop = text[start : start + length]
        (cut,) = both_ways(
            server, prompt="吾輩は", max_tokens=60, temperature=1, seed=2, stop=["§§§", stop]
        )
        assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_choices_of_several_prompts_keep_their_indices(server):
    answered = both_ways(
        server, prompt=["吾輩は", "To be"], n=3, max_tokens=9, temperature=1, seed=1
    )
    assert [choice["index"] for choice in answered] == list(range(6))
    assert len({choice["text"] for choice in answered}) > 2
    (alone,) = both_ways(server, prompt="To be", max_tokens=9, temperature=1, seed=1)
    assert answered[3]["text"] == alone["text"]  # company changes nothing


def test_an_echo_is_the_beginning_of_the_same_text(server):
    (plain,) = both_ways(server, prompt="吾輩は", max_tokens=8)
    (echoed,) = both_ways(server, prompt="吾輩は", max_tokens=8, echo=True, logprobs=1)
    assert echoed["text"] == "吾輩は" + plain["text"]
    (nothing,) = both_ways(server, prompt="吾輩は", max_tokens=0, echo=True)
    assert (nothing["text"], nothing["finish_reason"]) == ("吾輩は", "length")
    (one,) = both_ways(server, prompt="吾輩は", max_tokens=1)
    assert one["finish_reason"] == "length"
    assert plain["text"].startswith(one["text"])


# --- clients that go ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_what_it_had(server, stream):
    with raw_request(server.address, {**LONG, "stream": stream, "n": 4}) as connection:
        if stream:
            assert b"200 OK" in connection.recv(100)
        server.wait_until("plamo_ref_requests_running", 4)
    server.wait_until_idle()
    assert server.metrics()['plamo_ref_requests_finished_total{reason="abort"}'] >= 4


def raw_request(address: str, body: dict) -> socket.socket:
    """A connection on which a request has been sent, and nothing read."""
    place = urlsplit(address)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    connection = socket.create_connection((place.hostname, place.port), timeout=20)
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
    return connection


def test_the_books_of_the_engine_are_right_after_clients_have_gone():
    """In this process, where the engine can be asked to check every block and slot."""

    async def run() -> None:
        llm = AsyncLLM("tiny", memory_bytes=64 << 20, max_num_seqs=4)
        address = asyncio.get_running_loop().create_future()
        config = ServerConfig(model_name="tiny")
        server = asyncio.create_task(
            serve(llm, config, address=Address(port=0), listening=address.set_result)
        )
        for number in range(6):
            body = {**LONG, "n": 3, "stream": True}
            with await asyncio.to_thread(raw_request, await address, body) as connection:
                while llm.num_requests < 3 or llm.stats.num_running < 3:
                    await asyncio.sleep(0.01)
                if number % 2:
                    await asyncio.to_thread(connection.recv, 100)
        async with asyncio.timeout(20):
            while llm.num_requests:
                await asyncio.sleep(0.01)
        audit = await llm.audit()
        assert (audit.problem, audit.num_requests, audit.stats.slots_used) == (None, 0, 0)
        assert set(audit.stats.blocks_used.values()) == {0}
        signal.raise_signal(signal.SIGTERM)
        await server
        assert llm.state == "closed"

    asyncio.run(run())


def test_many_who_come_and_go_leave_nothing(server):
    total = 200 * SCALE
    engine = server.engine()
    front = psutil.Process(server.process.pid)
    files = front.num_fds()

    async def visit(number: int) -> None:
        place = urlsplit(server.address)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        body = json.dumps({**LONG, "stream": number % 3 > 0}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        if number % 2:
            await writer.drain()
        if number % 3 == 1:
            await reader.read(50)
        writer.transport.abort() if number % 5 else writer.close()

    async def crowd() -> None:
        for start in range(0, total, 50):
            await asyncio.gather(*(visit(number) for number in range(start, start + 50)))

    asyncio.run(crowd())
    server.wait_until_idle()
    assert server.engine() == engine
    assert front.num_fds() <= files + 5
    both_ways(server, prompt="吾輩は", max_tokens=3)


def test_a_crowd_is_served_completely(server):
    total = 50 * SCALE
    (alone,) = both_ways(server, prompt="To be, or", max_tokens=4)

    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=total)
        async with httpx.AsyncClient(limits=limits, timeout=300, trust_env=False) as client:
            body = {**GREEDY, "prompt": "To be, or", "max_tokens": 4}
            address = f"{server.address}/v1/completions"
            return await asyncio.gather(*(client.post(address, json=body) for _ in range(total)))

    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {alone["text"]}


# --- servers that go ------------------------------------------------------------------------------


def test_when_the_engine_is_killed_everybody_is_told_and_it_comes_back(tmp_path):
    options = ("--max-requests", "4", "--stall-seconds", "2")
    with running_server(tmp_path, *options) as server, server.client() as client:
        with (
            client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream,
            raw_request(server.address, LONG) as waiting,
        ):
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            server.wait_until("plamo_ref_requests_running", 2)
            refused = client.post("/v1/completions", json={**LONG, "n": 3})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            server.engine().kill()
            last = [line for line in lines if line][-1]
            error = json.loads(last.removeprefix("data: "))["error"]
            assert "exit code -9" in error["message"]
            answer = waiting.recv(65536).decode()
            while not answer.endswith("}"):  # the body may come after its head
                answer += waiting.recv(65536).decode()
            assert answer.startswith("HTTP/1.1 500")
            assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["type"] == "server_error"
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "restarting")
        early = client.post("/v1/completions", json={**LONG, "max_tokens": 1})
        assert (early.status_code, early.headers["retry-after"]) == (503, "2")
        server.wait_until("plamo_ref_engine_up", 1, seconds=60)
        assert client.get("/health").json() == {"status": "ready", "restarts": 1}
        assert client.post("/v1/completions", json={**LONG, "max_tokens": 1}).status_code == 200
        server.engine().suspend()
        server.wait_until("plamo_ref_engine_up", 0)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stalled")
        server.engine().resume()
        server.wait_until("plamo_ref_engine_up", 1)


def test_when_the_engine_may_not_come_back_the_server_ends_with_an_error(tmp_path):
    with running_server(tmp_path, "--engine-restarts", "0") as server:
        with raw_request(server.address, LONG) as waiting:
            server.wait_until("plamo_ref_requests_running", 1)
            server.engine().kill()
            assert waiting.recv(100).startswith(b"HTTP/1.1 500")
        assert server.process.wait(20) == 2
        assert "engine ended" in server.log.read_text()


def test_a_signal_lets_streams_come_to_their_end(tmp_path):
    with running_server(tmp_path) as server, server.client() as client:
        body = {**LONG, "max_tokens": 150, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            got = [next(lines)]
            server.process.send_signal(signal.SIGTERM)
            got += list(lines)
        finished = [choice for choice in choices("\n".join(got)) if choice["finish_reason"]]
        assert [choice["finish_reason"] for choice in finished] == ["length"]
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_signal_does_not_wait_for_ever(tmp_path):
    with (
        running_server(tmp_path, "--drain-seconds", "0.3") as server,
        raw_request(server.address, {**LONG, "stream": True}) as connection,
    ):
        assert b"200 OK" in connection.recv(100)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 15


def test_a_server_that_cannot_start_says_why(tmp_path):
    with (
        pytest.raises(AssertionError, match=r"plamo-ref: .*memory_bytes"),
        running_server(tmp_path, "--memory-bytes", "1000"),
    ):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        expected = re.escape(f"cannot listen on 127.0.0.1 port {port}")
        with (
            pytest.raises(AssertionError, match=expected),
            running_server(tmp_path, "--port", port),
        ):
            pass
