"""docs/ledger.md: every recorded result, by subject.

Invariant: the page is a function of notebooks/recorded and of this file; every number in it is a
record's, and stands beside the machine and the command that gave it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.ledger.records import Record, records_of
from tools.ledger.tables import TABLES


@dataclass(frozen=True)
class Section:
    """A subject: what a reader has to know, the picture (a name in plots.PLOTS), the records."""

    title: str
    text: str
    records: tuple[str, ...]
    plot: str | None = None


INTRODUCTION = """\
# Ledger

Every speed and every error that was measured here, from the records in
[`notebooks/recorded`](../notebooks/recorded). `python -m tools.ledger` makes this page, its
pictures and the table in README.md, and a test compares them with the records. Under the tables of
a record stand the machine, the versions, the day and the command that does it again;
`python benchmarks/gpu_session.py` does the GPU's part.

**How to read it.** GPU rows use the published shapes with random weights in bfloat16, and a float32
state unless said. *The floor* is the time for the bytes or operations that must be, whichever takes
longer, at the rates that the same card reached in the same process when it only copied or only
multiplied ({ceilings}).
An engine at 100 % of the floor's speed would waste nothing. `linear` passes it: the ceiling is one
product of two 8192 × 8192 matrices, and others can be faster.\
"""

SECTIONS = (
    Section(
        "Is it right?",
        "Golden cases were computed by independent implementations. What the tests prove beyond "
        "them (equality in float64 in any company) is no measurement and stands in README.md.",
        ("golden", "state_error"),
    ),
    Section(
        "What others do differently",
        "One checkpoint and one text, in float64, under ways that public implementations of "
        "PLaMo 2 take or took. The weights are random and made to remember: they show where an "
        "error begins, not how large it would be in a published model.",
        ("deviations",),
        "exactness",
    ),
    Section(
        "What fewer bytes cost",
        "Each scheme of `quantization=` in a model of 4 M parameters, a fourth of which are its "
        "embedding. It shows that a scheme is sound and which one is finer; how much a model of "
        "8 B parameters loses it cannot tell: larger ones have more room in a weight, and "
        'outliers in their activations that this one has not. Rows with "too" round what '
        "`quantization=` leaves in bfloat16, one kind of weight at a time: B, C and Δ could go, "
        "for 1 % of the weights; the head adds half of what all products cost. int4 and int8 lie "
        "in words as the matrix unit wants them. From the instructions of a first kernel 2.2 ms "
        "were predicted for int4 at batch 1 on an H200, and 3.2 came as before. A profile said "
        "why: products of too few programs (the widest of Mamba's took 34.8 µs, its bytes 8), and "
        "16 parts of each for the norm to add. Now a program's warps have columns of their own "
        "and the unit of matrices that none has to wait for. A sweep of the products took 64 µs "
        "a layer instead of 84, from which 2.5 ms were predicted, and with tiles of 256 tokens "
        "15.0 at batch 256 instead of 18.5. The sweep met a NaN, too: the last products of an "
        "iteration still read registers that the next one wrote. Each iteration now waits for "
        "them, for up to a quarter of the time of a product. So beyond 128 requests bfloat16 "
        "remains faster, and with prompts of 2,048 tokens, whose weights are made plain first.",
        (
            "quantization_quality",
            "gpu_decode_8b_fp8",
            "gpu_decode_8b_int8",
            "gpu_decode_8b_int4",
            "gpu_prefill_8b_fp8",
            "gpu_prefill_8b_int8",
            "gpu_prefill_8b_int4",
            "gpu_decode_8b_narrow",
            "gpu_mixed_8b_fp8",
            "gpu_mixed_8b_fp8_bf16",
            "gpu_decode_translate_int4",
        ),
    ),
    Section(
        "Against vLLM",
        "Both engines on one card, with the same shapes, prompts and lengths. *Times as fast* is "
        "vLLM's time over this engine's; above 1 this engine is faster.",
        ("gpu_peer",),
        "peer",
    ),
    Section(
        "Decode on a GPU",
        "One step gives every running request a token. It must read all weights and the states "
        "of the batch, so the floor is a line over the batch; a bfloat16 state makes it flatter.",
        ("gpu_decode_8b", "gpu_decode_8b_bf16", "gpu_decode_1b", "gpu_decode_1b_bf16"),
        "decode",
    ),
    Section(
        "Products of 65 to 256 tokens",
        "All products of an 8B step take 4.3 ms of an H200 by their bytes; at 256 tokens they "
        "take 6.9 by their arithmetic. Timed one kind after the other they took 5.5 and 7.1 ms: "
        "78 % of the floor's speed at 128, and 96 % at 256, where nothing is left. Built: gate "
        "and up as one product in tiles that the copy engine (TMA) feeds, SwiGLU at its end. "
        "Predicted from a sweep: 75.5 to 69.5 µs a layer at 128 tokens, 0.19 ms of a step; of "
        "prompts 2 of 60 ms at 2,048 tokens and 4 of 241 at 8,192. It came out as 0.33 ms at 128, "
        "and for prompts as nothing from 2,048 tokens on, a tie of signs below, and 1 % more for "
        "the mixed workload, of one run each. What likely decides there is the card's power, "
        "which saved bytes do not give back. So tiles are for 65 to 128 tokens, products at 128 "
        "are at 81 %, and for more the library stays. No difference: W asked for before the last "
        "kernel's end (69.4 to 70.7 µs). Left alone, being small: `out` and `o` in two parts for "
        "their reader to add, 25.2 instead of 28.6 and 14.9 instead of 16.1 µs at 128 tokens, "
        "slower at 80. What bounds the rest at 128: `in`, `out`, `down` in tiles of 128 rows read "
        "x as often as W, 6.9 TB/s out of L2, and each launch fills and drains. The next thing to "
        "try: blocks of x that two programs share (multicast in a cluster), as the library's "
        "products do.",
        ("gpu_joints_8b",),
    ),
    Section(
        "States written every k tokens",
        "`state_replay=k` reads the last written state and the inputs since, and computes the same "
        "outputs. Predicted before it was built, for an H100 and a float32 state at batch 256: "
        "16.3 to 13.8 ms.",
        ("gpu_decode_8b_replay", "gpu_state_replay_8b"),
    ),
    Section(
        "Prefill on a GPU",
        "One prompt alone. From about 512 tokens the floor is arithmetic; below, it is the "
        "reading of the weights. Tried and left out: attention in Gluon, with warps that load, "
        "two groups that multiply, and a softmax beside the next keys' product. On an H200, "
        "8,192 tokens of the 8B shape: 405 TFLOP/s in Triton, 425 in the first form, 334 in the "
        "one whose machine code really interleaves both; 2,048 tokens were slower in either. It "
        "would have had to be a tenth faster to be worth a second way of writing kernels.",
        ("gpu_prefill_8b", "gpu_prefill_1b"),
        "prefill",
    ),
    Section(
        "A mixed workload on a GPU",
        "256 requests of many lengths, all at once: prompts in chunks beside decodes. The floor "
        "is the sum of the steps' own: the arithmetic of each, while the weights are read, and "
        "what its decodes move for themselves.",
        ("gpu_mixed_8b", "gpu_mixed_8b_bf16", "gpu_mixed_1b"),
    ),
    Section("From the start to the first token", "", ("gpu_startup_8b", "gpu_startup_1b")),
    Section(
        "Several GPUs",
        "The same model, shared by ranks and stages; each table is one call on one machine. The "
        "sums are NCCL's in recorded steps, or made by the kernels that read them. In the first "
        "table two stages still waited for their host in each round. With 512 seats one GPU's "
        "batches of more than 256 decodes are not recorded, and a stage's half batches are: that "
        "is a part of what two stages gain there. (The prompt of 512 tokens was being recorded "
        "when it was timed.)",
        ("gpu_parallel_8b", "gpu_parallel_8b_fused", "gpu_fused_sums_8b", "gpu_parallel_8b_512"),
    ),
    Section(
        "What each optimisation buys",
        "One thing is switched off at a time; the percentage is how much longer a decode step "
        "takes then. A negative number means that the step is faster without it. In brackets: no "
        "more than two runs of that step, or of the one with everything on, lie apart, so it may "
        "be chance. At batch 256 runs lie almost a millisecond apart, and most of the small "
        "numbers are in brackets.",
        ("gpu_ablation_8b", "gpu_ablation_1b"),
        "ablation",
    ),
    Section(
        "Kernels alone",
        "`sample` passes over a row many times where its floor counts one reading.",
        ("gpu_kernels", "gpu_kernels_8b"),
    ),
    Section(
        "Behind the server",
        "Requests arrive at random at the given rate, whatever the server does, and stream. "
        "The load table says what a client waits for.",
        ("gpu_server_8b", "gpu_server_8b_fresh", "server"),
        "server",
    ),
    Section(
        "A request cannot starve others",
        "`max_step_time_ms` gives a step as much of a prompt as fits beside those who wait.",
        ("gpu_starvation_8b",),
    ),
    Section(
        "Drafts from the text itself",
        "The model is made to count, so `copy` has its whole text in the prompt, `edit` with each "
        "20th token changed, `new` nothing of it, and in `decoy` each two tokens go on otherwise. "
        "The ids are the same with and without drafts.",
        ("gpu_speculation_8b",),
    ),
    Section("What the host takes on a GPU", "", ("gpu_host_1b", "gpu_pauses_8b")),
    Section(
        "When something goes wrong",
        "A step is a transaction: whatever breaks off a call, the others' streams stay what they "
        "were. A hostile request may cost its sender, not the others.",
        ("interrupts", "hostile", "hostile_before"),
    ),
    Section(
        "Penalties, biases and masks",
        "Counts and biases are tables on the device; the plain twin reads every context anew.",
        ("gpu_penalties", "penalties"),
    ),
    Section(
        "Prefix caching",
        "A crowd of 64 prompts with 3,000 tokens in common, and 32 chats of five turns. *The least "
        "possible* is what a memory without bounds, with a state at every token, would compute.",
        ("gpu_prefix_8b", "gpu_prefix_arena_8b", "gpu_prefix_cost_8b", "prefix"),
    ),
    Section(
        "One arena",
        "The same bytes as two rooms, states in one and keys in the other, and as pages that are "
        "either. The 8B shape, the real scheduler and books; the model is a stub and the clock a "
        "formula, so this says who ran and what was found, and nothing about a device.",
        ("arena",),
    ),
    Section(
        "On a CPU",
        "The embedded model, on a small machine: what batching, a scheduler and the host cost.",
        ("throughput", "mixed", "scheduler", "host", "pauses", "load_1b", "tokenizer", "masks"),
    ),
)


def page(folder: Path, alts: dict[str, str]) -> str:
    """The Markdown; `alts` has what each picture shows, by its name."""
    parts = [INTRODUCTION.format(ceilings=_ceilings(folder))]
    for section in SECTIONS:
        found = [(name, r) for name in section.records for r in records_of(name, folder)]
        if not found:
            continue
        parts += [f"## {section.title}", *([section.text] if section.text else [])]
        if section.plot is not None:
            parts.append(f"![{alts[section.plot]}](ledger_{section.plot}.png)")
        parts += [block for name, record in found for block in _blocks(name, record)]
    return "\n\n".join(parts) + "\n"


def _blocks(name: str, record: Record) -> Iterator[str]:
    yield from (table.markdown() for table in TABLES[name](record.rows))
    yield f"{record.origin}."
    if record.conditions:
        yield "\n".join(f"- *{what}*: {said}." for what, said in record.conditions.items())


def _ceilings(folder: Path) -> str:
    """What each card did when it only copied or only multiplied, lowest to highest."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for section in SECTIONS:
        for name in section.records:
            for record in records_of(name, folder):
                for row in record.rows:
                    if "copy_gb_per_s" in row:
                        rates = row["copy_gb_per_s"] / 1e3, row["product_tflop_per_s"]
                        seen.setdefault(record.machine, []).append(rates)
    return "; ".join(
        f"{card}: {min(copies):.2f}–{max(copies):.2f} TB/s, "
        f"{min(products):.0f}–{max(products):.0f} TFLOP/s"
        for card, pairs in seen.items()
        for copies, products in [zip(*pairs, strict=True)]
    )
