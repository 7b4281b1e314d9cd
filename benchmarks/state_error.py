"""What a state kept in bfloat16 costs over a long decode: `python benchmarks/state_error.py`.

The embedded model continues a prompt greedily for --tokens tokens with a float32 state. Then both
kinds of state read the same text token by token, as a decode does, and say how likely each of its
tokens is. Differences of those log probabilities are the error; activations stay in --dtype. The
state's own dtype is the only thing that differs.
"""

import argparse
from pathlib import Path

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write

PARTS = 4  # the text in quarters, to see whether the error grows


def logprobs(ids: list[int], state_dtype: str, dtype: str) -> tuple[list[float], list[int]]:
    """Of each token but the first: its log probability and its rank, fed one token a step."""
    settings = {"max_num_batched_tokens": 1, "max_num_seqs": 1, "overlap": False}
    llm = LLM("tiny", device="cpu", dtype=dtype, state_dtype=state_dtype, **settings)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([ids], params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    rows = zip(ids, output.prompt_logprobs, strict=True)
    scored = [row[token] for token, row in rows if row is not None]
    return [each.logprob for each in scored], [each.rank for each in scored]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompt", default="吾輩は")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    llm = LLM("tiny", device="cpu", dtype=options.dtype)
    prompt = llm.tokenizer.encode(options.prompt)
    params = SamplingParams(
        temperature=0.7, top_p=0.95, seed=1, max_tokens=options.tokens, ignore_eos=True
    )
    (text,) = llm.generate([prompt], params, use_tqdm=False)
    ids = [*prompt, *text.outputs[0].token_ids]

    exact, ranks = logprobs(ids, "float32", options.dtype)
    fast, fast_ranks = logprobs(ids, "bfloat16", options.dtype)
    differences = [abs(a - b) for a, b in zip(exact, fast, strict=True)]
    size = len(differences) // PARTS
    quarters = [differences[i * size : (i + 1) * size] for i in range(PARTS)]
    first = [(a == 1) == (b == 1) for a, b in zip(ranks, fast_ranks, strict=True)]
    row = {
        "tokens": len(ids),
        "dtype": options.dtype,
        "mean_abs_logprob": round(sum(differences) / len(differences), 6),
        "max_abs_logprob": round(max(differences), 6),
        "mean_by_quarter": [round(sum(q) / len(q), 6) for q in quarters],
        "nats_per_token_float32": round(-sum(exact) / len(exact), 5),
        "nats_per_token_bfloat16": round(-sum(fast) / len(fast), 5),
        "same_token_on_top": round(sum(first) / len(first), 5),
    }
    print(*(f"{key:26} {value}" for key, value in row.items()), sep="\n")
    if options.json:
        write(report("state_error", [row]), options.json)


if __name__ == "__main__":
    main()
