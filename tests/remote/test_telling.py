"""What a process says of a step that gave a request several tokens.

Invariant tested: each token is told once, in its order; the last one says why it is the last.
"""

import asyncio

from plamo_ref import LLM, AsyncLLM, SamplingParams
from plamo_ref.engine.request import Request
from plamo_ref.remote.telling import Teller

PROMPT = "one two three one two three one two"


def request_of(*outputs):
    request = Request("r", (1,), SamplingParams(), frozenset({9}), 0, 0)
    request.output_ids += outputs
    return request


def test_each_token_is_told_once():
    teller, request = Teller(several=True), request_of(5)
    (first,) = teller.tokens(request)
    assert first.prompt is not None
    request.output_ids += [6, 7, 9]
    request.status, request.finish_reason = "finished", "stop"
    told = teller.tokens(request)
    assert [(t.token_id, t.finish_reason, t.is_text) for t in told] == [
        (6, None, True),
        (7, None, True),
        (9, "stop", False),
    ]
    assert not any(token.prompt for token in told)
    assert teller.tokens(request) == []


def test_without_drafts_it_is_the_newest_one():
    (token,) = Teller(several=False).tokens(request_of(5, 6))
    assert (token.token_id, token.finish_reason) == (6, None)


def test_an_engine_elsewhere_says_the_same_with_drafts():
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    settings = {"device": "cpu", "memory_bytes": 2**26, "dtype": "float64"}
    with LLM("tiny", **settings) as llm:
        (expected,) = llm.generate(PROMPT, params, use_tqdm=False)
        stop = expected.outputs[0].text[40:44]
        stopping = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, stop=[stop])
        (short,) = llm.generate(PROMPT, stopping, use_tqdm=False)

    async def ask():
        drafts = {"method": "ngram", "prompt_lookup_min": 1}
        async with AsyncLLM("tiny", **settings, speculative_config=drafts) as llm:
            found = [(await llm.generate(PROMPT, each))[0] for each in (params, stopping)]
            return found, (await llm.audit()).stats.drafts

    found, drafts = asyncio.run(ask())
    for got, want in zip(found, (expected, short), strict=True):
        one, other = got.outputs[0], want.outputs[0]
        assert (one.text, one.token_ids, one.stop_reason) == (
            other.text,
            other.token_ids,
            other.stop_reason,
        )
    assert drafts.tokens >= drafts.accepted > 0
