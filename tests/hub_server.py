"""A model hub on loopback: the file API that `huggingface_hub` speaks, with faults on request.

Model info and tree as JSON, `resolve` with commit and ETag headers, a redirect to another address
for safetensors (as the hub does for large files), byte ranges. Every request is written down.
"""

import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False  # info is public, files need an accepted licence
    refuse: int | None = None  # answer everything with this status and no explanation
    need_token: str | None = None
    cuts: dict[str, list[int]] = field(default_factory=dict)  # file → close after so many bytes
    resets: set[str] = field(default_factory=set)  # files whose connection is reset half-way


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[tuple[str, str | None]]:
        """(file name, Range) of each GET of a file's bytes since the log was last cleared."""
        gets = [(path, span) for method, path, span in self.requests if method == "GET"]
        return [(p.rsplit("/", 1)[1], r) for p, r in gets if "/resolve/" in p or p[:4] == "cdn/"]

    def shutdown_request(self, request: Any) -> None:
        """Close; without the farewell that the base class sends first if a reset is wanted."""
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
            self.close_request(request)
        else:
            super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            kind, name, rest = "api", "/".join(parts[2:4]), parts[4:]
        elif parts[0] == "cdn":
            kind, name, rest = "cdn", "/".join(parts[1:3]), parts[3:]
        else:
            kind, name, rest = "file", "/".join(parts[:2]), parts[2:]
        repo = self.server.repos.get(name)
        if repo is None or (repo.need_token and self._token() != repo.need_token):
            self._error(401 if self._token() is None else 404, "RepoNotFound")
        elif repo.refuse:
            self._error(repo.refuse)
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT) and kind != "cdn":
            self._error(404, "RevisionNotFound")
        elif kind == "api":
            self._api(name, repo, rest)
        elif repo.gated:
            self._error(403 if self._token() else 401, "GatedRepo")
        elif "/".join(rest[2:] if kind == "file" else rest) not in repo.files:
            self._error(404, "EntryNotFound")
        else:
            self._file(kind, name, repo, "/".join(rest[2:] if kind == "file" else rest))

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _api(self, name: str, repo: Repo, rest: list[str]) -> None:
        if rest[:1] == ["tree"]:
            answer: object = [
                {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}
                for path, data in repo.files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in repo.files]
            answer = {"id": name, "sha": COMMIT, "siblings": siblings}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _file(self, kind: str, name: str, repo: Repo, path: str) -> None:
        data = repo.files[path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes"}
        if kind == "file" and path.endswith(".safetensors"):
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            target = f"{self.server.endpoint}/cdn/{name}/{path}"
            return self._send(302, headers | linked | {"Location": target}, b"")
        status, span = 200, self.headers.get("Range")
        if span:
            start = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        if self.command == "GET" and path in repo.resets:
            no_wait = struct.pack("ii", 1, 0)  # close with a reset, not with a farewell
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_wait)
            return self._send(status, headers, data, len(data) // 2)
        cut = repo.cuts.get(path) if self.command == "GET" else None
        return self._send(status, headers, data, cut.pop(0) if cut else None)

    def _error(self, status: int, code: str | None = None) -> None:
        self._send(status, {"X-Error-Code": code} if code else {}, b"")

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        if cut is not None:
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
