"""Clients that are slow: with the head of a request, with its body, with reading the answer.

Invariant tested: each of them is let go after the time that was configured, what it held is free
again, and a client at an ordinary pace never notices. For both of uvicorn's HTTP protocols.
"""

import asyncio
import importlib.util
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from servers import RunningServer, running_server
from test_server import refused
from test_server_scenarios import LONG, raw_request

from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge import patience
from plamo_ref.server.edge.patience import MAX_HEAD_BYTES, impatient

PROTOCOLS = ["h11"] + ["httptools"] * (importlib.util.find_spec("httptools") is not None)
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
SECONDS = 0.4


async def hello(scope, receive, send):
    """An app that answers before it has read the body."""
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


@asynccontextmanager
async def listening(protocol: str) -> AsyncIterator[tuple[str, int]]:
    name = {"h11": "H11Protocol", "httptools": "HttpToolsProtocol"}[protocol]
    module = importlib.import_module(f"uvicorn.protocols.http.{protocol}_impl")
    http = impatient(getattr(module, name), ServerConfig(model_name="x", head_seconds=SECONDS))
    config = uvicorn.Config(hello, http=http, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        await task


async def until_closed(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """All that still comes, and the seconds that it takes."""
    began, said = time.monotonic(), b""
    async with asyncio.timeout(20):
        try:
            while part := await reader.read(1000):
                said += part
        except ConnectionError:
            pass
    return said, time.monotonic() - began


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("sent", [b"", b"GET /", HEAD], ids=["nothing", "half a line", "no end"])
def test_a_head_that_does_not_end_is_not_waited_for(protocol, sent):
    async def run() -> None:
        async with listening(protocol) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            said, seconds = await until_closed(reader)
            writer.close()
        assert said == b""
        assert SECONDS * 0.8 < seconds < 10

    asyncio.run(run())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_head_that_trickles_does_not_gain_time_with_each_byte(protocol):
    async def run() -> None:
        async with listening(protocol) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEAD + b"\r\n")  # a first request at an ordinary pace
            first = await reader.readuntil(b"hello")
            assert first.startswith(b"HTTP/1.1 200")
            closed = asyncio.create_task(until_closed(reader))
            for byte in HEAD * 20:
                if closed.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
            said, seconds = await closed
            writer.close()
        assert (said, seconds < 5) == (b"", True)

    asyncio.run(run())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordinary_clients_keep_their_connection(protocol):
    async def run() -> None:
        async with listening(protocol) as address:
            reader, writer = await asyncio.open_connection(*address)
            for pause in (0, SECONDS * 1.5, SECONDS * 1.5):  # longer than a head may take
                await asyncio.sleep(pause)
                writer.write(HEAD + b"Content-Length: 3\r\n\r\nabc")
                assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_head_without_end_is_bounded_in_bytes_too(protocol, monkeypatch):
    monkeypatch.setattr(patience, "MAX_UNREAD_BODY", 1000)  # not what bounds a head

    async def run() -> None:
        async with listening(protocol) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEAD)
            lines, sent = b"X-A: " + b"a" * 1000 + b"\r\n", 0
            while sent < 3 * MAX_HEAD_BYTES and not reader.at_eof():
                writer.write(lines)
                sent += len(lines)
            said, seconds = await until_closed(reader)
            writer.close()
        assert b" 200 " not in said
        assert seconds < SECONDS * 0.8  # not the clock

    asyncio.run(run())


# --- the server itself ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    times = ("--head-seconds", "0.5", "--body-seconds", "0.5", "--read-seconds", "0.5")
    with running_server(tmp_path_factory.mktemp("server"), *times) as running:
        yield running
        running.wait_until_idle()


def test_a_body_that_trickles_is_answered_with_408_and_the_connection_ends(server):
    body = json.dumps({**LONG, "max_tokens": 1}).encode()

    def trickle() -> Iterator[bytes]:
        for byte in body:
            yield bytes([byte])
            time.sleep(0.05)

    with server.client() as client:
        kind = {"Content-Type": "application/json"}
        answer = client.post("/v1/completions", content=trickle(), headers=kind)
        error = refused(answer, 408)
        assert error["code"] == "body_too_slow"
        assert answer.headers["connection"] == "close"
        assert client.post("/v1/completions", content=body, headers=kind).status_code == 200


def test_who_does_not_read_is_let_go_and_the_engine_is_free(server):
    body = {**LONG, "n": 32, "stream": True, "logprobs": 20}
    with raw_request(server.address, body) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.wait_until("plamo_ref_requests_running", 32)
        server.wait_until("plamo_ref_requests_in_flight", 0, seconds=60)
    server.wait_until_idle()
    assert server.metrics()['plamo_ref_requests_finished_total{reason="abort"}'] >= 32


def test_a_stream_may_take_longer_than_any_of_these_times(server):
    with server.client() as client:
        body = {**LONG, "max_tokens": 400, "stream": True}
        began = time.monotonic()
        text = client.post("/v1/completions", json=body).text
        assert time.monotonic() - began > 0.5
        assert text.endswith("data: [DONE]\n\n")
