"""What hostile clients cost the others: gaps of a neighbour's stream, stalls of /health, memory.

    python benchmarks/hostile.py [--only WORDS] [--commit NAME] [--json FILE]

A server with the embedded model streams greedily to one neighbour, and `/health` is asked every
few milliseconds, while one request after another arrives that is made to be expensive: grammars
that blow up when compiled, bodies of up to 4 MiB that are dear to validate, to tokenize or to
store, penalties over long prompts. The first row is a friendly request: what the machine does
anyway. `gap_ms` is the longest time between two tokens of the neighbour, `health_ms` the slowest
answer of `/health`, `front_mb` what the front's memory has grown by a second after the answer.

`--commit` asks the server of another commit the same, which may do whatever it did then. After
PATIENCE seconds nobody waits any longer: such a time says "at least".

Invariant: the neighbour's text is the one that it has when nobody else is there; a difference, a
5xx answer to a hostile request, or a server that does not answer a friendly one afterwards
(`broken`: the next row has a new one) ends the program with 1, unless a commit is named.
"""

import argparse
import contextlib
import http.client
import io
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving import NAME, Server, running_server

from plamo_ref.bench.report import report, write

MOST = (4 << 20) - 200  # bytes of a body
ASKED = 64  # tokens of a hostile request
NEIGHBOUR = {"model": NAME, "prompt": "To be", "max_tokens": 1500, "ignore_eos": True}
SLOW_HEALTH = 0.005  # seconds between two questions
PATIENCE = 20  # seconds
PLAIN = {"model": NAME, "prompt": "To be", "max_tokens": ASKED, "seed": 1}


def grammars() -> dict[str, dict[str, Any]]:
    """Grammars that cost a compiler much, each of another kind."""
    words = [f"item{i}x{i * 13}" for i in range(20_000)]
    chain = {f"c{i}": {"anyOf": [{"$ref": f"#/$defs/c{i + 1}"}] * 2} for i in range(40)}
    doubling = "\n".join(f"b{i}: b{i + 1} b{i + 1}" for i in range(40))
    rules = "\n".join(f'q{i}: "a" q{i + 1} | "b"' for i in range(20_000))
    lengths = [{"type": "string", "pattern": f"^(y{i}|[a-z]{{1,{i}}})*$"} for i in range(1, 200)]
    every = " & ".join(f"/.*{letter}.*/" for letter in "abcdefghijklmnop")
    schemas: dict[str, Any] = {
        "enum of 20,000": {"enum": words},
        "8,000 required properties": {
            "type": "object",
            "properties": {word: {"type": "integer"} for word in words[:8000]},
            "required": words[:8000],
        },
        "100,000 items": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000},
        "text of 100,000 at least": {"type": "string", "minLength": 100_000},
        "200 patterns": {"anyOf": lengths},
        "references that double": {
            "$defs": {**chain, "c40": {"type": "null"}},
            "$ref": "#/$defs/c0",
        },
        "a reference to itself": {
            "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}},
            "$ref": "#/$defs/a",
        },
        "a multiple of 9,999,991": {"type": "integer", "multipleOf": 9_999_991},
        "16 patterns at once": {
            "allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]
        },
    }
    asked = {f"schema: {name}": {"json": schema} for name, schema in schemas.items()}
    asked |= {
        "regex: counted in counted": {"regex": "((((b{1,40}){1,40}){1,40}){1,40})"},
        "regex: 1,000 that may be absent": {"regex": "(b?){1000}b{1000}"},
        "regex: the letter 30 from the end": {"regex": "(.|\\n)*b(.|\\n){30}c"},
        "regex: classes of all alphabets": {"regex": "(\\p{L}{1,90}\\s){1,90}\\p{N}"},
        "regex: 20,000 words": {"regex": "|".join(words)},
        "choice: 8,000": {"choice": words[:8000]},
        "choice: beginnings of each other": {"choice": ["b" * i for i in range(1, 900)]},
        "Lark: every sum has two readings": {"grammar": 'start: s\ns: s s | "b" | ""'},
        "Lark: rules that double": {"grammar": f'start: b0\n{doubling}\nb40: "x" | ""'},
        "Lark: 20,000 rules in a chain": {"grammar": f'start: q0\n{rules}\nq20000: "x"'},
        "Lark: 16 patterns at once": {"grammar": f"start: A\nA: {every}"},
        "Lark: what a pattern is not": {
            "grammar": "start: A\nA: ~(/(.|\\n)*b(.|\\n){16}/) & /[bc]*/"
        },
    }
    return asked


def padded(before: str, item: str, after: str, size: int = MOST) -> bytes:
    count = (size - len(before) - len(after)) // len(item.encode())
    return (before + item * count).rstrip(",").encode() + after.encode()


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Name, path, bytes."""
    completion, chat = "/v1/completions", "/v1/chat/completions"
    head = f'{{"model":"{NAME}",'
    user = '{"role":"user","content":"b"},'
    yield "messages that are numbers", chat, padded(head + '"messages":[', "0,", "]}")
    yield (  # as many values as may be
        "260,000 numbers for messages",
        chat,
        padded(head + '"messages":[', "0,", "]}", 520_000),
    )
    yield "80,000 prompts", completion, padded(head + '"prompt":[', '"b",', "]}", 320_000)
    yield "messages that are empty", chat, padded(head + '"messages":[', "{},", "]}")
    yield "80,000 messages", chat, padded(head + '"messages":[', user, "]}")
    yield (
        "parts of a message that are numbers",
        chat,
        padded(head + '"messages":[{"role":"user","content":[', "0,", "]}]}"),
    )
    yield "prompts of two kinds", completion, padded(head + '"prompt":[', '"",0,', "]}")
    yield "prompts of a prompt of a prompt", completion, padded(head + '"prompt":[', '[""],', "]}")
    yield "a million prompts", completion, padded(head + '"prompt":[', '"b",', "]}")
    yield "a text of 4 MiB", completion, padded(head + '"prompt":"', "にわ", '"}')
    yield "a text of one letter", completion, padded(head + '"prompt":"', "b", '"}')
    yield "a million stop strings", completion, padded(head + '"prompt":"b","stop":[', '"c",', "]}")
    yield (
        "two million stop ids",
        completion,
        padded(head + '"prompt":"b","stop_token_ids":[', "1,", "]}"),
    )
    yield (
        "400,000 biases",
        completion,
        padded(head + '"prompt":"b","logit_bias":{', '"1":"x",', "}}"),
    )
    yield (
        "a million choices",
        completion,
        padded(head + '"prompt":"b","structured_outputs":{"choice":[', '"d",', "]}}"),
    )
    yield "half open", completion, padded(head + '"prompt":[', "[", "")
    yield "ids to make text of", "/detokenize", padded('{"tokens":[', "5,", "]}")
    yield (
        "text to cut into strings",
        "/tokenize",
        padded('{"return_token_strs":true,"prompt":"', "あb", '"}', MOST // 2),
    )


def requests() -> Iterator[tuple[str, str, bytes]]:
    """Every request in turn: what kind it is of, its path, its body."""
    completions = "/v1/completions"
    yield "a friendly request", completions, json.dumps(PLAIN).encode()
    for name, grammar in grammars().items():
        body = json.dumps({**PLAIN, "structured_outputs": grammar}).encode()
        yield f"grammar: {name}", completions, body
    for name, path, body in bodies():
        yield f"body: {name}", path, body
    many = {**PLAIN, "prompt": [7] * 500, "n": 16, "max_tokens": 24, "ignore_eos": True}
    yield "16 answers, no penalty", completions, json.dumps(many).encode()
    yield "16 answers, penalties", completions, json.dumps(many | PENALTIES).encode()


PENALTIES = {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1}


def post(server: Server, path: str, body: bytes, seconds: float = PATIENCE) -> tuple[int, bytes]:
    """A request that may fail: status 0 and why."""
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=seconds)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


class Neighbour(threading.Thread):
    """One stream after another until told to stop: when each event came, and the texts."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self._over = server, threading.Event()
        self.arrivals: list[list[float]] = []  # of each stream
        self.texts: list[str] = []
        self.wrong: str | None = None

    def run(self) -> None:
        while not self._over.is_set() and self.wrong is None:
            try:
                self._stream()
            except (OSError, http.client.HTTPException) as error:
                self.wrong = repr(error)

    def _stream(self) -> None:
        netloc = urlsplit(self._server.address).netloc
        connection = http.client.HTTPConnection(netloc, timeout=PATIENCE)
        body = json.dumps({**NEIGHBOUR, "temperature": 0, "stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        arrivals, text = list[float](), ""
        self.arrivals.append(arrivals)
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "choices" not in event:
                    self.wrong = line.decode()
                    break
                text += event["choices"][0]["text"]
                arrivals.append(time.perf_counter())
                if self._over.is_set():
                    break
        self.texts.append(text)
        connection.close()

    def end(self) -> None:
        self._over.set()
        self.join(60)

    def longest_gap(self, since: float, until: float) -> float:
        """Seconds between two tokens of one stream, of which the second came after `since`. If
        nothing has come any more, the time that the last token has been alone."""
        pairs = [pair for stream in self.arrivals for pair in itertools.pairwise(stream)]
        found = [b - a for a, b in pairs if b > since]
        last = max((stream[-1] for stream in self.arrivals if stream), default=since)
        return max([*found, until - last] if last < until else found)


class Pulse(threading.Thread):
    """Asks /health again and again, and remembers the slowest answer."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self._over, self.slowest = server, threading.Event(), 0.0

    def run(self) -> None:
        netloc = urlsplit(self._server.address).netloc
        while not self._over.is_set():
            started = time.perf_counter()
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(netloc, timeout=PATIENCE)
                connection.request("GET", "/health")
                connection.getresponse().read()
                connection.close()
            self.slowest = max(self.slowest, time.perf_counter() - started)
            time.sleep(SLOW_HEALTH)

    def end(self) -> float:
        self._over.set()
        self.join(60)
        return self.slowest


def front_mb(server: Server) -> float:
    """0 if there is no front any more."""
    try:
        status = Path(f"/proc/{server.front_pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def measure(server: Server, name: str, path: str, body: bytes, expected: str) -> dict[str, Any]:
    neighbour, before = Neighbour(server), front_mb(server)
    neighbour.start()
    time.sleep(0.5)
    pulse, started = Pulse(server), time.perf_counter()
    pulse.start()
    status, answer = post(server, path, body)
    took = time.perf_counter() - started
    time.sleep(0.2)
    until = time.perf_counter()
    slowest = pulse.end()
    neighbour.end()
    time.sleep(1)
    friendly, _ = post(server, "/v1/completions", json.dumps(PLAIN).encode())
    message = ""
    if status >= 400:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            message = json.loads(answer)["error"]["message"][:120]
    return {
        "asked": name,
        "bytes": len(body),
        "status": status,
        "seconds": round(took, 2),
        "gap_ms": round(1e3 * neighbour.longest_gap(started, until), 1),
        "health_ms": round(1e3 * slowest, 1),
        "front_mb": round(front_mb(server) - before, 1),
        "says": message,
        "broken": friendly != 200,
        "text_changed": not all(expected.startswith(text) for text in neighbour.texts),
        "neighbour": neighbour.wrong or "",
    }


def measured(asked: list[tuple[str, str, bytes]], tree: Path | None) -> Iterator[dict[str, Any]]:
    """The rows, of one server as long as it lives. `tree`: where another one's package is."""
    # Only float64 promises the same text in any company.
    settings = {"dtype": "float64", "max_num_batched_tokens": 128}
    while asked:
        with running_server("tiny", settings, tree) as server:
            body = json.dumps({**NEIGHBOUR, "temperature": 0}).encode()
            _, answer = post(server, "/v1/completions", body, 300)
            expected = json.loads(answer)["choices"][0]["text"]
            broken = False
            while asked and not broken:
                row = measure(server, *asked.pop(0), expected)
                broken = row["broken"]
                yield row


@contextlib.contextmanager
def exported(commit: str | None) -> Iterator[Path | None]:
    """A folder with the project as it was then."""
    if commit is None:
        yield None
        return
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="requests whose names have these words")
    parser.add_argument("--commit", help="the server of this commit, instead of the present one")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    asked, rows = [one for one in requests() if options.only in one[0]], []
    with exported(options.commit) as tree:
        for row in measured(asked, tree):
            rows.append(row)
            print(row, flush=True)
            bad = row["broken"] or row["text_changed"] or row["neighbour"]
            if options.commit is None and (bad or row["status"] not in range(200, 500)):
                sys.exit(f"{row['asked']}: a hostile request has cost others something")
    if options.json:
        write(report("hostile", rows), options.json)


if __name__ == "__main__":
    main()
