"""Serve, start the engine, drain, stop.

While the engine starts, `/health` says so, and everything else is asked to come again.

Invariant: when `serve` returns, the engine process is gone. SIGTERM and SIGINT let what is being
streamed come to its end, for at most `drain_seconds`; a second SIGINT does not wait.
"""

import asyncio
import contextlib
import importlib
import signal
import ssl
from collections.abc import Callable, Coroutine, Iterator

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from plamo_ref.chat.templates import load_template
from plamo_ref.engine.pauses import collect_all, set_aside
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.server.app import create_app
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge.listen import BACKLOG, Address, listen
from plamo_ref.server.edge.patience import impatient
from plamo_ref.server.service import Service


class EngineGoneError(PlamoRefError, RuntimeError):
    """The engine has ended for good while the server was running."""


class _Server(uvicorn.Server):
    """Ends with exit code 0 after a signal that it has obeyed; the base raises it once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def until_done(serving: Coroutine[None, None, None]) -> None:
    """Run `serve`, on uvloop where it is installed: each token costs the front less there."""
    try:
        factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        factory = None  # asyncio's own
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serving)


async def serve(
    llm: AsyncLLM,
    config: ServerConfig,
    *,
    address: Address,
    chat_template: str | None = None,
    drain_seconds: float = 30.0,
    listening: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until a signal comes. `listening` is called with the address once requests can come.

    Raises:
        PlamoRefError: the model, the template or the address cannot be used.
        EngineGoneError: the engine has ended and may not be started again.
    """
    template = load_template(llm.folder, chat_template, llm.tokenizer)
    tls = address.context()
    with listen(address) as listener:
        app = create_app(Service(llm, config, template))
        server = _Server(_settings(app, config, tls, drain_seconds))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            if not await _started(llm, serving):
                return
            set_aside()
            listening(address.name(listener))
            dead = asyncio.create_task(llm.dead.wait())
            await asyncio.wait({serving, dead}, return_when=asyncio.FIRST_COMPLETED)
            dead.cancel()
            server.should_exit = True
            await serving  # which lets the streams come to their end
            if llm.dead.is_set():
                raise EngineGoneError(f"the engine ended and is not started again: {llm.end}")
        finally:
            server.should_exit = True
            await asyncio.wait({serving})
            await llm.close()
            collect_all()


def _settings(
    app: object, config: ServerConfig, tls: ssl.SSLContext | None, drain_seconds: float
) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=impatient(AutoHTTPProtocol, config),  # httptools where it is installed, else h11
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        timeout_graceful_shutdown=drain_seconds,  # type: ignore[arg-type]
    )


async def _started(llm: AsyncLLM, serving: asyncio.Task[None]) -> bool:
    """Start the engine; False: a signal has ended the server before.

    Raises:
        EngineError: the engine cannot be started.
    """
    starting = asyncio.create_task(llm.start())
    await asyncio.wait({starting, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return False
    await starting
    return True
