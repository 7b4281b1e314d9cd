"""Replicas on Ray, as clients of `plamo-ref serve --data-parallel-size 2` meet them.

Invariant tested: through Ray Serve the server is what it is without: same ids, same events, same
refusals; a replica that is killed takes down its own streams alone and comes back; who has a long
prefix in common meets the replica that knows it; an `LLM` over replicas answers in order.

Ray is large (a wheel of 80 MB, 290 MB installed with what it brings) and takes half a minute to
start on two cores, so `make test` does not install it: pip install -e '.[test,cluster]'.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from threading import Barrier

import httpx
import psutil
import pytest
from servers import RunningServer, running_server

from plamo_ref import LLM, SamplingParams

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None,
    reason="NOT TESTED: replicas on Ray; pip install -e '.[test,cluster]' to test them",
)
PATIENCE = 180  # seconds for Ray, on a busy machine
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True}
PROMPTS = ["吾輩は", "To be, or", "It was the best of times", "abc"]
STORY = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--data-parallel-size", "2", "--api-key", "k")
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, *options, model="tiny", seconds=PATIENCE) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with new_client(server) as client:
        yield client


def new_client(server: RunningServer) -> httpx.Client:
    return server.client(headers={"Authorization": "Bearer k"})


def texts(count: int) -> list[str]:
    """What one engine says to PROMPTS."""
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    with LLM("tiny", dtype="float64", memory_bytes=64 << 20) as llm:
        return [o.outputs[0].text for o in llm.generate(PROMPTS, params, use_tqdm=False)]


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def until(is_so, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.1)


def streamed(client: httpx.Client, prompt: str, count: int, begun: Barrier | None = None) -> list:
    """The events of a stream; all that share `begun` have begun before any goes on."""
    body = {**GREEDY, "prompt": prompt, "max_tokens": count, "stream": True}
    seen = []
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in filter(None, answer.iter_lines()):
            seen.append(line.removeprefix("data: "))
            if begun is not None and len(seen) == 1:
                begun.wait(PATIENCE)
    return seen


def test_texts_and_events_are_those_of_one_engine(client):
    expected = texts(12)
    answer = client.post("/v1/completions", json={**GREEDY, "prompt": PROMPTS, "max_tokens": 12})
    assert [choice["text"] for choice in answer.json()["choices"]] == expected
    for prompt, text in zip(PROMPTS, expected, strict=True):
        *events, done = streamed(client, prompt, 12)
        assert done == "[DONE]"
        assert "".join(json.loads(one)["choices"][0]["text"] for one in events) == text
    assert len(events) > 3  # not all at once


def test_refusals_are_those_of_the_app(server, client):
    with server.client() as stranger:
        assert stranger.get("/v1/models").status_code == 401
        assert stranger.get("/health").json()["replicas"] == {"0": "ready", "1": "ready"}
    answer = client.post("/v1/completions", json={**GREEDY, "prompt": "x", "max_tokens": 10**6})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.headers["x-request-id"]
    assert client.post("/v1/completions", json={"model": "y", "prompt": "x"}).status_code == 404
    assert client.post("/v1/completions", content=b"x" * (5 << 20)).status_code == 413
    assert client.get("/nowhere").status_code == 404


def test_a_second_visitor_meets_the_replica_that_knows_the_prefix(client):
    found = []
    for visitor in range(4):
        body = {**GREEDY, "prompt": f"{STORY}{visitor}", "max_tokens": 2}
        usage = client.post("/v1/completions", json=body).json()["usage"]
        found.append(usage["prompt_tokens_details"]["cached_tokens"] > 0)
    assert found == [False, True, True, True]


def test_metrics_tell_of_each_replica(client):
    streamed(client, "abc", 3)
    for name in ("engine_up", "cache_usage", "engine_steps_total", "prefix_cache_hits_total"):
        seen = {key for key in metrics(client) if key.startswith(f"plamo_ref_{name}{{")}
        assert {n for n in "01" if any(f'replica="{n}"' in key for key in seen)} == {"0", "1"}


def test_a_client_that_leaves_takes_its_request_with_it(client):
    body = {**GREEDY, "prompt": "abc", "max_tokens": 4000, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())

    def at_work() -> float:
        seen = metrics(client)
        return sum(seen[key] for key in seen if "in_flight" in key or "requests_running" in key)

    until(lambda: at_work() == 0, "the request ends")


def test_a_killed_replica_ends_its_own_streams_and_comes_back(server):
    family = psutil.Process(server.process.pid).children(recursive=True)
    (victim,) = [p for p in family if "replica-0" in " ".join(p.cmdline())]
    its_engine = victim.children(recursive=True)
    assert its_engine
    begun = Barrier(5)
    with ThreadPoolExecutor() as threads, new_client(server) as client:
        calls = [threads.submit(streamed, client, str(i), 600, begun) for i in range(4)]
        begun.wait(PATIENCE)
        victim.kill()
        endings = [call.result()[-1] for call in calls]
        failed = [json.loads(each)["error"] for each in endings if each != "[DONE]"]
        assert len(failed) == 2
        assert all("replica 0 was lost" in error["message"] for error in failed)

        def health() -> dict:
            return client.get("/health").json()

        until(lambda: health()["restarts"] == 1, "the replica's restart")
        until(lambda: health()["replicas"] == {"0": "ready", "1": "ready"}, "the replica")
        assert psutil.wait_procs(its_engine, timeout=10)[1] == []
        again = client.post("/v1/completions", json={**GREEDY, "prompt": PROMPTS, "max_tokens": 3})
        assert [choice["text"] for choice in again.json()["choices"]] == texts(3)


OFFLINE = """
import json, sys
from plamo_ref import LLM, SamplingParams
prompts, settings = json.loads(sys.argv[1])
params = [SamplingParams(max_tokens=5 + i, n=1 + i % 2, ignore_eos=True) for i in range(8)]
with LLM("tiny", **settings) as llm:
    said = llm.generate(prompts * 2, params, use_tqdm=False)
    said += llm.generate(prompts, params[:4], use_tqdm=False)
    refused = ""
    try:
        llm.generate([[1] * 9000], use_tqdm=False)
    except Exception as error:
        refused = str(error)
told = [[o.request_id, o.prompt, [c.token_ids for c in o.outputs]] for o in said]
print(json.dumps([told, refused]))
"""


def test_an_llm_over_replicas_answers_in_order(server):
    """On the server's Ray, so that there is one less to start. No request brings a seed."""
    told = []
    for size in (1, 2):
        settings = {"dtype": "float64", "memory_bytes": 64 << 20, "data_parallel_size": size}
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE, json.dumps([PROMPTS, settings])],
            env={**os.environ, "RAY_ADDRESS": "auto"},
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            check=True,
        )
        told.append(json.loads(done.stdout))
    (one, refused), (two, refused_of_two) = told
    assert two == one
    assert [row[1] for row in two] == PROMPTS * 3
    assert refused_of_two.startswith("replica ")
    assert refused.partition("the prompt has")[2] == refused_of_two.partition("the prompt has")[2]
