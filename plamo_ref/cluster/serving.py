"""Serve a model from several replicas: the one server's app, on Ray Serve.

    client → Serve's HTTP proxy → Front: the FastAPI app → Replica 0 … N - 1, each with an engine

Invariant: the routes, the limits and the errors are those of `plamo_ref/server`, whose app this is;
what Ray's proxy cannot do is refused. When `serve` returns nothing of it is left on the cluster.
"""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

from starlette.types import ASGIApp

from plamo_ref.chat.templates import load_template
from plamo_ref.cluster.client import ReplicatedAsyncLLM
from plamo_ref.cluster.extra import ClusterError, connect, granted, load, seeded
from plamo_ref.cluster.handle import ServeHandle
from plamo_ref.cluster.replica import Replica
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.pauses import set_aside
from plamo_ref.errors import PlamoRefError
from plamo_ref.server.app import create_app
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge.listen import Address, ServeError, listen
from plamo_ref.server.service import Service

APP = "plamo-ref"  # its name in Ray's dashboard
CALLS = 1 << 16  # to an actor at a time: limits are ours, and the app's
HEALTH_SECONDS = 2.0  # between two questions of Serve's


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What is put on the cluster."""

    model: str
    engine: EngineConfig  # `data_parallel_size` replicas of it
    server: ServerConfig
    client: Mapping[str, Any]  # further arguments of `AsyncLLM`
    address: Address
    chat_template: str | None = None
    drain_seconds: float = 30.0


class Front:
    """The app in an actor of Serve, with the replicas' handles."""

    def __init__(self, what: Deployment, *handles: Any) -> None:
        ways = [ServeHandle(handle) for handle in handles]
        self._llm = ReplicatedAsyncLLM(what.model, ways, config=what.engine, **what.client)
        template = load_template(self._llm.folder, what.chat_template, self._llm.tokenizer)
        self._service = Service(self._llm, what.server, template)
        self._starting = asyncio.create_task(self._llm.start())
        set_aside()

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Serve asks for the app by this name
        return create_app(self._service)

    async def trouble(self) -> str:
        """Wait for all replicas. Returns what keeps one from working, or nothing."""
        try:
            await asyncio.shield(self._starting)
        except PlamoRefError as error:
            return str(error)
        return ""


def deploy(what: Deployment) -> str:
    """Put it on the cluster, in which this runs as a task, and wait until all replicas work.
    Returns what went wrong, or nothing."""
    try:
        handle = _run(what)
        problem = handle.trouble.remote().result()
    except PlamoRefError as error:
        problem = str(error)
    except RuntimeError as error:  # Serve's word for a deployment that does not come up
        problem = f"Ray Serve: {error}"
    if problem:
        withdraw()
    assert isinstance(problem, str)
    return problem


def withdraw() -> None:
    """Take it off the cluster again; what is streamed comes to its end before."""
    _quiet_serve().delete(APP)


def _quiet_serve() -> ModuleType:
    """Serve, which speaks of troubles only."""
    serve = load("ray.serve")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve


def _run(what: Deployment) -> Any:
    ray, serve = load(), _quiet_serve()
    num_replicas = what.engine.data_parallel_size
    asked = granted(ray, what.engine, num_replicas)
    one = replace(what, engine=replace(what.engine, data_parallel_size=1))
    address = what.address
    http = {"host": address.host, "port": address.port}
    if address.ssl_certfile is not None:
        names = ("ssl_keyfile", "ssl_certfile", "ssl_keyfile_password")
        http |= {name: getattr(address, name) for name in names}
    logs = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(http_options=http, logging_config=logs)
    shared = {
        "max_ongoing_requests": CALLS,
        "graceful_shutdown_timeout_s": what.drain_seconds,
        "health_check_period_s": HEALTH_SECONDS,
        "logging_config": logs,
    }
    replica = serve.deployment(Replica)
    handles = [
        replica.options(name=f"replica-{i}", ray_actor_options=asked, **shared).bind(
            what.model, {**what.client, **asdict(seeded(one.engine, i))}
        )
        for i in range(num_replicas)
    ]
    front = serve.deployment(serve.ingress()(Front))
    options: dict[str, Any] = {"name": "front", "ray_actor_options": {"num_cpus": 0}, **shared}
    return serve.run(front.options(**options).bind(one, *handles), name=APP, route_prefix="/")


def serve(
    what: Deployment,
    *,
    address: str | None = None,
    listening: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until a signal comes: on the Ray cluster at `address`, or on this machine alone.
    `listening` is called with the URL once all replicas can work.

    Raises:
        ClusterError: there is no Ray, or not what the replicas need.
        PlamoRefError: a setting cannot be used.
    """
    what = replace(what, address=_checked(what.address))
    ray = connect(address)
    with _signalled() as stop:
        try:
            if problem := ray.get(ray.remote(num_cpus=0)(deploy).remote(what)):
                raise ClusterError(problem)
            scheme = "http" if what.address.ssl_certfile is None else "https"
            host = f"[{what.address.host}]" if ":" in what.address.host else what.address.host
            listening(f"{scheme}://{host}:{what.address.port}")
            stop.wait()
        finally:
            ray.get(ray.remote(num_cpus=0)(withdraw).remote())
            ray.shutdown()


def _checked(address: Address) -> Address:
    """An address that Ray's proxy can listen at; for port 0, one that is free here.

    Raises:
        ServeError: it cannot.
    """
    for name in ("uds", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"):
        if getattr(address, name):
            flag = "--" + name.replace("_", "-")
            raise ServeError(f"{flag}: with --data-parallel-size Ray Serve listens, which has none")
    address.context()
    if address.port:
        return address
    with listen(address) as listener:
        return replace(address, port=listener.getsockname()[1])


@contextlib.contextmanager
def _signalled() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal interrupts."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
