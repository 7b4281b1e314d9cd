"""Other people's clients, unchanged, against the real server on loopback.

Invariant tested: the openai package, LangChain, lm-eval and schemathesis work with the server as
they come, and what they report is what the offline engine computes.

The clients are imported where they are used: that takes a second and a half in each process that
collects this file, and one of them runs it.
"""

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from servers import RunningServer, running_server

from plamo_ref import LLM, SamplingParams

SCALE = int(os.environ.get("SCENARIO_SCALE", "1"))
MESSAGES = [{"role": "user", "content": "猫は"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    # Small limits: a client that is made to try everything shall not wait for long texts.
    limits = ("--max-model-len", "96", "--max-choices", "4", "--max-prompts", "4")
    template = ("--chat-template", str(Path(__file__).parents[1] / "tools.jinja"))
    with running_server(tmp_path_factory.mktemp("server"), *limits, *template) as running:
        yield running
        running.wait_until_idle()


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


def test_openai_completes_and_streams_the_same(client):
    fields = {"model": "tiny", "prompt": "吾輩は", "max_tokens": 30, "seed": 3, "n": 2}
    whole = client.completions.create(**fields)
    assert whole.object == "text_completion"
    assert whole.usage is not None
    texts, reasons = {0: "", 1: ""}, []
    options = {"include_usage": True}
    for chunk in client.completions.create(**fields, stream=True, stream_options=options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert sorted(reasons) == sorted(choice.finish_reason for choice in whole.choices)
    assert usage == whole.usage


def test_openai_chats_and_streams_the_same(client):
    fields = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 30, "seed": 5}
    whole = client.chat.completions.create(**fields)
    (choice,) = whole.choices
    assert (choice.message.role, whole.object) == ("assistant", "chat.completion")
    parts = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == choice.message.content
    assert [p.finish_reason for p in parts if p.finish_reason] == [choice.finish_reason]


def test_the_newer_limit_of_a_chat_decides_and_the_older_must_be_possible(openai, client):
    fields = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 3, "seed": 5}
    answer = client.chat.completions.create(**fields, max_tokens=20)
    assert answer.usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(**fields, max_tokens=10**9)


def test_openais_own_stream_helper_puts_a_chat_together(client):
    only = {"guided_choice": ["猫は寝ている。"]}  # its helper does not like a text that was cut
    fields = {"model": "tiny", "messages": MESSAGES, "max_tokens": 60, "extra_body": only}
    with client.chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "猫は寝ている。"
    assert final.choices[0].finish_reason == "stop"


def test_openai_gets_an_object_that_follows_its_schema(client):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}},
        "required": ["kind", "old"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=80,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}},
    )
    assert answer.choices[0].finish_reason == "stop"
    pet = json.loads(answer.choices[0].message.content or "")
    assert (pet.keys(), pet["kind"] in ("cat", "dog")) == ({"kind", "old"}, True)


def test_openai_raises_its_own_errors(openai, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="tiny", prompt=[50] * 300)
    with pytest.raises(openai.BadRequestError, match="n may be at most"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=5, stream=True)


def test_openai_streams_to_many_at_once_and_hangs_up_cleanly(openai, server):
    async def crowd() -> list[str]:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(
                base_url=f"{server.address}/v1", api_key="none", max_retries=0, http_client=http
            ) as client,
        ):

            async def one(number: int) -> str:
                text = ""
                stream = await client.completions.create(
                    model="tiny", prompt="To be", max_tokens=20, temperature=0, stream=True
                )
                async with stream:
                    async for chunk in stream:
                        text += chunk.choices[0].text
                        if number % 4 == 0:
                            return ""
                return text

            return await asyncio.gather(*(one(number) for number in range(16)))

    texts = asyncio.run(crowd())
    assert len(set(texts)) == 2
    server.wait_until_idle()


def test_langchain_invokes_streams_and_batches(server):
    from langchain_core.messages import HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    with httpx.Client(trust_env=False) as http:
        chat = ChatOpenAI(
            model="tiny",
            base_url=f"{server.address}/v1",
            api_key="none",  # type: ignore[arg-type]
            temperature=0,
            max_tokens=12,  # type: ignore[call-arg]
            max_retries=0,
            http_client=http,
        )
        messages = [SystemMessage("簡潔に。"), HumanMessage("猫は")]
        whole = chat.invoke(messages)
        assert whole.usage_metadata is not None
        assert whole.usage_metadata["output_tokens"] <= 12
        assert "".join(str(part.content) for part in chat.stream(messages)) == whole.content
        assert [answer.content for answer in chat.batch([messages] * 3)] == [whole.content] * 3


def test_lm_eval_finds_the_log_probabilities_of_the_offline_engine(server, tmp_path):
    questions = [
        {"q": "吾輩は", "a": ["猫である。", "犬である。"], "gold": 0},
        {"q": "To be, or", "a": [" not to be", " the of and"], "gold": 0},
        {"q": "名前は", "a": ["まだ無い。", "x"], "gold": 0},
    ]
    results = lm_eval(server, questions, tmp_path)
    assert len(results) == len(questions)
    llm = LLM(server.model, memory_bytes=64 << 20)
    for question, result in zip(questions, results, strict=True):
        for answer, ((said, greedy),) in zip(question["a"], result["resps"], strict=True):
            logprob, is_greedy = offline_score(llm, question["q"], answer)
            assert float(said) == pytest.approx(logprob, abs=1e-3)
            assert (str(greedy) == "True") == is_greedy


def offline_score(llm: LLM, context: str, continuation: str) -> tuple[float, bool]:
    """Log probability of a continuation, and whether every token of it is the likeliest."""
    ids = llm.tokenizer.encode(context, add_bos=False)
    start = len(ids)
    # What follows may be cut differently alone: the harness takes it from the whole.
    ids += llm.tokenizer.encode(context + continuation, add_bos=False)[start:]
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([ids], params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    places = list(zip(ids, output.prompt_logprobs, strict=True))[start:]
    scores = [here[token] for token, here in places if here is not None]
    return sum(s.logprob for s in scores), all(s.rank == 1 for s in scores)


# What its documentation has for callers in Python. Its command does the same after it has read the
# 14,000 files of its own tasks, which takes most of its time and asks the server nothing.
HARNESS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
asked = json.load(sys.stdin)
found = simple_evaluate(**asked, task_manager=TaskManager(include_defaults=False))
json.dump(found["samples"]["small_choice"], sys.stdout, default=str)
"""


def lm_eval(server: RunningServer, questions: list[dict], folder: Path) -> list[dict]:
    """Run the harness; its samples, in order."""
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, questions)))
    task = {
        "task": "small_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{a}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    model = f"model=tiny,base_url={server.address}/v1/completions,num_concurrent=2"
    asked = {"model": "local-completions", "model_args": model, "tasks": [task]}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    done = subprocess.run(
        [sys.executable, "-c", HARNESS],
        input=json.dumps(asked),
        env={**os.environ, **offline, "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout.splitlines()[-1])
    return sorted(samples, key=lambda sample: sample["doc_id"])


def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(server, tmp_path):
    phases = "examples,coverage,fuzzing,stateful" if SCALE > 1 else "fuzzing,stateful"
    command = [Path(sys.executable).with_name("st"), "run", f"{server.address}/openapi.json"]
    command += ["--max-examples", str(12 * SCALE), "--generation-deterministic", "--phases", phases]
    command += ["--request-timeout", "60"]
    command += ["--exclude-checks", "positive_data_acceptance"]  # ours does it, and a little more
    folder = str(Path(__file__).parents[1])
    hooks = {"SCHEMATHESIS_HOOKS": "openapi_checks", "PYTHONPATH": folder}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | hooks,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    server.wait_until_idle()
