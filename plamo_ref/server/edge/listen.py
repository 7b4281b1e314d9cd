"""Where the server listens: host and port or a Unix socket, plain or with TLS.

Invariant: what cannot be listened on is refused before the engine starts, with the file or the
address named; a Unix socket's file is gone when the server is, and nobody else's file is touched.
"""

import contextlib
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plamo_ref.errors import PlamoRefError

BACKLOG = 2048


class ServeError(PlamoRefError, OSError):
    """The server cannot listen where it should."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Names and meanings are vLLM's, and uvicorn's."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    uds: str | None = None  # path of a Unix socket; then host and port do not matter
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None  # the certificate, and those between it and the root
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None  # whose signatures a client's certificate may have
    ssl_cert_reqs: int = 0  # certificates of clients; 0: not asked for, 1: checked, 2: required
    ssl_ciphers: str | None = None  # of TLS 1.2 and below

    def context(self) -> ssl.SSLContext | None:
        """What TLS needs; None: plain HTTP.

        Raises:
            ServeError: a file cannot be read, or they do not go together.
        """
        if self.ssl_certfile is None:
            rest = ("keyfile", "keyfile_password", "ca_certs", "cert_reqs", "ciphers")
            given = [f"--ssl-{name.replace('_', '-')}" for name in rest if self._given(name)]
            if given:
                raise ServeError(f"{given[0]} needs --ssl-certfile: without it there is no TLS")
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with _named("certificate or key", self.ssl_certfile, self.ssl_keyfile):
            # A password, if only an empty one: OpenSSL would ask the terminal for it.
            password = self.ssl_keyfile_password or ""
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password)
        if self.ssl_ca_certs is not None:
            with _named("--ssl-ca-certs", self.ssl_ca_certs):
                context.load_verify_locations(self.ssl_ca_certs)
        elif self.ssl_cert_reqs:
            raise ServeError("--ssl-cert-reqs needs --ssl-ca-certs: who may sign for a client?")
        context.verify_mode = ssl.VerifyMode(self.ssl_cert_reqs)
        if self.ssl_ciphers is not None:
            with _named("--ssl-ciphers", self.ssl_ciphers):
                context.set_ciphers(self.ssl_ciphers)
        return context

    def _given(self, name: str) -> bool:
        return bool(getattr(self, f"ssl_{name}"))

    def name(self, listener: socket.socket) -> str:
        """As a client writes it: a URL, or the path of the socket."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "http" if self.ssl_certfile is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def listen(address: Address) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        ServeError: it cannot.
    """
    if address.uds is None:
        with _bound(_family(address.host), (address.host, address.port)) as listener:
            yield listener
        return
    path = Path(address.uds)
    _clear(path)
    with _bound(socket.AF_UNIX, str(path)) as listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _bound(family: socket.AddressFamily, where: tuple[str, int] | str) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError as error:
            said = where if isinstance(where, str) else f"{where[0]} port {where[1]}"
            raise ServeError(f"cannot listen on {said}: {error.strerror or error}") from None
        yield listener


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _clear(path: Path) -> None:
    """Take away the socket that a server left which was killed.

    Raises:
        ServeError: it is in use, or no socket.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing there; or `bind` says what is wrong
    if not stat.S_ISSOCK(mode):
        raise ServeError(f"cannot listen on {path}: there is a file of that name, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ServeError(f"cannot listen on {path}: {error.strerror or error}") from None
        else:
            raise ServeError(f"cannot listen on {path}: another server does")


@contextlib.contextmanager
def _named(what: str, *values: str | None) -> Iterator[None]:
    """OpenSSL's errors name no file."""
    try:
        yield
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        said = ", ".join(value for value in values if value is not None)
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"TLS: {what} {said}: {reason}") from None
