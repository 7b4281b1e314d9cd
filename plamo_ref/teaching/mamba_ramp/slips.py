"""What the self-checks of lesson 11 say to whom: each slip, and the numbers that it leads to.

Invariant: every slip changes the numbers of its exercise, and no two lead to the same ones; so a
sentence is only said to those who made that mistake.
Used by lesson 11.
"""

# Exercise → what is said → the slip of the formula.
FORMULAS: dict[str, dict[str, str]] = {
    "decay": {
        "exp of a large number is infinite in float32: where x > 20, softplus(x) is x": "overflow",
        "the bias is added before softplus": "bias",
        "Δ is softplus of dt + bias, not the sum itself": "softplus",
        "every token has its own row: program t works at t · H + h": "row",
        "A is negative already: the factor is exp(Δ · A)": "sign",
        "how much is forgotten depends on Δ: exp(Δ · A)": "alone",
    },
    "conv_step": {
        "the last tap is for the newest input": "taps",
        "the memory has to move on: place k to k - 1": "still",
        "the newest input goes to the last place of the memory": "newest",
        "the memory moves the other way: the oldest is at place 0 and leaves": "right",
        "load a place before something else is stored there": "early",
        "a request's memory is in its slot, not in row number `row`": "slot",
        "silu at the end": "silu",
    },
    "head_step": {
        "y reads the *new* state": "old",
        "what is new does not fade: first fade, then add": "faded",
        "what is written is Δ u ⊗ B, with the Δ": "delta",
        "the old state fades": "fade",
        "the new state has to be stored": "unsaved",
    },
    "slots_step": {
        "the state is in slots[row], not in slot number `row`": "slot",
        "each head has its own state: (slot · H + head) · P · N": "head",
        "each head has its own Δ and factor: row · H + head": "rate",
        "B and C are those of the row": "row",
        "y reads the *new* state": "old",
        "the new state has to be stored": "unsaved",
    },
    "update": {
        "D · u is missing": "skip",
        "D · u is added before the gate": "late",
        "the gate is silu(z) = z · sigmoid(z), not sigmoid(z)": "sigmoid",
        "the gate is missing": "gate",
        "the new state has to be stored": "unsaved",
    },
    "walk": {
        "the prompt continues from the state that is there": "zero",
        "every token has its own u, B, C, Δ and factor: they move with t": "first",
        "y reads the *new* state": "old",
        "the last state has to be stored": "unsaved",
        "what is new does not fade: first fade, then add": "faded",
    },
    "chunk": {
        "a token sees itself: s ≤ t, not s < t": "diagonal",
        "a token sees the earlier ones: the triangle lies on the other side": "transposed",
        "∞ · 0 is NaN: put -∞ above the diagonal *before* exp": "after",
        "what the state adds is missing: exp(l_t) C_t S": "carried",
        "the state that came in has faded until t, not until the end": "end",
        "each token's part fades until the end: exp(l_end - l_s)": "left",
        "the old state fades by the whole chunk: exp(l_end)": "kept",
        "what is summed is Δ u, with the Δ": "delta",
    },
    "scan": {
        "a request without a past must not look into its slot": "peek",
        "a request with a past begins with its slot's state": "past",
        "the state goes on from chunk to chunk: load it before the loop": "restart",
        "tokens behind the end must not fade anything: Δ = 0 there": "padding",
        "the last state has to be stored": "unsaved",
        "D · u is missing": "skip",
        "the gate is missing": "gate",
    },
}
