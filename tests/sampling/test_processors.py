"""Functions of the user's own on the logits: exact in every company, or an error with their name.

Invariant tested: what a processor is given depends on its request alone. That one which fails ends
its own request, test_recovery.py shows; that a step waits for the tokens it looks at, test_overlap.
"""

import random
import re
from dataclasses import replace

import pytest
import torch
from engines import CONFIGS, pair

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.fast.adjust_tables import AdjustTables
from plamo_ref.proof.lab import draw_scenario
from plamo_ref.proof.law import run_scenario
from plamo_ref.proof.sharing import draw_sharing_scenario
from plamo_ref.remote.calls import Job, RequestRefusedError, checked
from plamo_ref.sampling import SamplingError


def by_history(ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Another bias for every text so far, and as strong as what the model says."""
    drawn = torch.Generator().manual_seed(random.Random(str(ids)).randrange(1 << 30))
    return logits.add_(3 * torch.randn(len(logits), generator=drawn, dtype=logits.dtype))


def only_odd(ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(logits)) % 2 == 1, logits, -torch.inf)


@pytest.mark.parametrize("draw", [draw_scenario, draw_sharing_scenario])
def test_the_law_holds_with_processors(draw):
    overlapped = preempted = found = 0
    for seed in range(24):
        name = list(CONFIGS)[seed % len(CONFIGS)]
        drawn = draw(random.Random(seed).randint, CONFIGS[name])
        requests = list(drawn.requests)
        for i in range(0, len(requests), 2):  # the others are plain, and overlap
            params = replace(requests[i].params, logits_processors=[by_history])
            requests[i] = replace(requests[i], params=params)
        result = run_scenario(replace(drawn, requests=tuple(requests)), pair(name))
        overlapped += bool(drawn.engine.overlap)
        preempted += sum(bool(record.preempted) for record in result.records)
        found += sum(count > 0 for record in result.records for _, count, _ in record.found)
    assert overlapped >= 5
    assert (preempted if draw is draw_scenario else found) >= 5


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", device="cpu", dtype="float32")


def test_what_they_say_is_done_one_after_the_other(llm):
    seen: list[tuple[int, float]] = []

    def spy(ids, logits):
        seen.append((len(ids), float(logits[::2].max())))
        return logits

    params = SamplingParams(max_tokens=5, seed=1, logits_processors=(only_odd, spy))
    [output] = llm.generate("吾輩は", params, use_tqdm=False)
    assert all(token % 2 for token in output.outputs[0].token_ids)
    assert seen == [(count, -torch.inf) for count in range(len(output.outputs[0].token_ids))]


def test_completions_of_one_prompt_share_them(llm):
    params = SamplingParams(n=2, max_tokens=3, seed=1, logits_processors=[only_odd])
    [output] = llm.generate("吾輩は", params, use_tqdm=False)
    assert all(token % 2 for one in output.outputs for token in one.token_ids)


@pytest.mark.parametrize(
    ("processor", "complaint"),
    [
        (lambda ids, logits: None, "returned a NoneType: return the logits, a tensor of"),
        (lambda ids, logits: logits.tolist(), "returned a list"),
        (lambda ids, logits: logits[:-1], r"returned a tensor float32 \["),
        (lambda ids, logits: logits > 0, r"returned a tensor bool \["),
        (lambda ids, logits: logits - torch.inf, "forbids every token"),
        (lambda ids, logits: logits * torch.nan, "has logits that are nan"),
        (lambda ids, logits: logits.index_fill(0, torch.tensor(3), torch.inf), "that are inf"),
    ],
)
@pytest.mark.parametrize("tables", [True, False])
def test_what_is_no_row_of_logits_ends_its_own_text_with_an_error(
    llm, processor, complaint, tables
):
    one = SamplingParams(logits_processors=[only_odd, processor])
    two = SamplingParams(max_tokens=2, logits_processors=[only_odd])
    llm.core.tables = AdjustTables() if tables else None
    bad, good = (o.outputs[0] for o in llm.generate(["吾輩は"] * 2, [one, two], use_tqdm=False))
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert re.match(rf"logits_processors\[1\] \(<lambda>\) .*{complaint}", bad.error)


def test_only_functions_are_taken():
    assert SamplingParams(logits_processors=None).logits_processors == ()
    with pytest.raises(SamplingError, match="logits_processors must be functions of token ids"):
        SamplingParams(logits_processors=[3])


def test_they_do_not_go_to_another_process():
    job = Job([1, 2], SamplingParams(logits_processors=[only_odd]))
    with pytest.raises(RequestRefusedError, match="logits_processors are functions"):
        checked(job)
