"""Hidden states of the served model: those of the reference, through the scheduler as it is.

Invariant tested: pieces, company, preemptions and what is kept of earlier prompts change no row,
and whoever else is served meanwhile notices nothing.
"""

import pytest
import torch

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.reference import Plamo2Reference

PROMPTS = [
    "吾輩は猫である。名前はまだ無い。",
    "To be, or not to be",
    [7, 8, 9] * 15,
    "吾輩は猫である",
]


@pytest.fixture(scope="module")
def reference() -> Plamo2Reference:
    return Plamo2Reference.from_pretrained("tiny", torch.float64)


def expected(reference: Plamo2Reference, llm: LLM, prompt) -> torch.Tensor:
    ids = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    with torch.inference_mode():
        return reference.run(torch.tensor(ids)).final_hidden


def new_llm(**settings) -> LLM:
    small = {"max_num_batched_tokens": 7, "max_num_seqs": 3, "block_size": 4, "dtype": "float64"}
    return LLM("tiny", device="cpu", memory_bytes=8_000_000, **small | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"overlap": True},
        {"scheduler": "v0", "chunk_size": 5},
        {"enable_prefix_caching": True, "overlap": True, "max_num_batched_tokens": 16},
    ],
    ids=str,
)
def test_each_row_is_the_references(reference, settings):
    llm = new_llm(**settings)
    llm.generate(PROMPTS[0], SamplingParams(max_tokens=2), use_tqdm=False)
    found = llm.hidden_states([*PROMPTS, PROMPTS[0]])
    for prompt, hidden in zip([*PROMPTS, PROMPTS[0]], found, strict=True):
        truth = expected(reference, llm, prompt)
        assert hidden.shape == truth.shape
        assert float((hidden - truth).abs().max()) < 1e-10
    assert not llm.core.observers
    llm.core.cache.check_integrity()


def test_a_recomputed_prompt_is_the_same(reference):
    llm = new_llm()
    core, kinds = llm.core, []

    def send_back(record, *_):
        kinds.extend(share.kind for share in record.scheduled)
        if record.step == 3:
            core.queues.preempt(core.queues.running[-1], Schedule())

    core.observers.append(send_back)
    [hidden] = llm.hidden_states([PROMPTS[2]])
    assert kinds[3:5] == ["prefill", "recompute"]
    assert float((hidden - expected(reference, llm, PROMPTS[2])).abs().max()) < 1e-10


@pytest.mark.parametrize(("overlap", "record"), [(False, False), (True, True), (True, False)])
def test_a_stream_beside_them_goes_on_as_it_would(reference, overlap, record):
    llm = new_llm(overlap=overlap, record=record)
    params = SamplingParams(max_tokens=8, seed=1, ignore_eos=True)
    alone = [piece.token_id for piece in llm.stream(PROMPTS[1], params)]
    pieces = llm.stream(PROMPTS[1], params)
    tokens = [next(pieces).token_id for _ in range(2)]
    [hidden] = llm.hidden_states(PROMPTS[0])  # with a step of the stream's under way
    assert tokens + [piece.token_id for piece in pieces] == alone
    assert float((hidden - expected(reference, llm, PROMPTS[0])).abs().max()) < 1e-10


def test_the_type_is_float32_at_least_and_one_prompt_is_a_list_of_one():
    llm = new_llm(dtype="bfloat16")
    [hidden] = llm.hidden_states("吾輩は")
    assert (hidden.dtype, hidden.shape[1]) == (torch.float32, llm.model_config.hidden_size)


def test_what_goes_wrong_leaves_the_engine_as_it_was():
    llm = new_llm()
    runner = llm.core.runner
    with pytest.raises(EngineError, match="prompt token 0 is 999999"):
        llm.hidden_states([[999999]])
    assert llm.core.runner is runner
    assert not llm.core.observers
    llm.core.observers.append(lambda record, *_: llm.abort("1"))
    with pytest.raises(EngineError, match="request 1 was aborted"):
        llm.hidden_states([PROMPTS[2]])
