"""Lesson 11's formulas, one number after the other in float64, and the slips that people make.

Invariant: without a slip they are the recurrence as it is written; a slip changes one thing in it.
So an answer that equals a slipped result has made that mistake.
Used by lesson 11's trials. Formulas: plamo_ref/kernels/ssm/twin.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
FLOAT32_OVERFLOWS = 88.73  # exp of more is infinite in float32


def decay(given: Tensors, slip: str = "") -> Tensors:
    """Δ = softplus(dt + bias) and exp(Δ A), each [T, H]."""
    x = given["dt"] if slip == "bias" else given["dt"] + given["bias"]
    delta = x if slip == "softplus" else F.softplus(x)
    if slip == "overflow":
        delta = delta.masked_fill(x > FLOAT32_OVERFLOWS, torch.inf)
    if slip == "row":
        delta = delta[:1].expand_as(delta)
    fade = torch.exp(-delta * given["A"] if slip == "sign" else delta * given["A"])
    if slip == "alone":
        fade = torch.exp(given["A"]).expand_as(delta)
    return {"delta": delta, "fade": fade}


def conv(given: Tensors, slip: str = "") -> Tensors:
    """One token of a convolution with K taps, and its memory moved on: [R, C] and [S, C, K-1]."""
    weight, memory = given["weight"], given["memory"].clone()
    out = torch.empty_like(given["u"])
    for row, newest in enumerate(given["u"]):
        slot = row if slip == "slot" else int(given["slots"][row])
        past = memory[slot].clone()
        if slip == "early":
            past[:, -1] = newest
        inputs = torch.cat((past, newest[:, None]), dim=1)  # [C, K]
        out[row] = (inputs * (weight.flip(1) if slip == "taps" else weight)).sum(1)
        memory[slot] = past if slip == "still" else inputs[:, 1:]
        if slip == "newest":
            memory[slot, :, -1] = past[:, -1]
        if slip == "right":
            memory[slot] = torch.cat((newest[:, None], past[:, :-1]), dim=1)
    return {"out": out if slip == "silu" else F.silu(out), "memory": memory}


def token(
    state: Tensor, u: Tensor, B: Tensor, C: Tensor, delta: Tensor, fade: Tensor, slip: str
) -> tuple[Tensor, Tensor]:
    """One token of one head: state [P, N] → y [P] and the new state."""
    write = torch.outer(u if slip == "delta" else delta * u, B)
    new = fade * (state + write) if slip == "faded" else fade * state + write
    if slip == "fade":
        new = state + write
    return (state if slip == "old" else new) @ C, state if slip == "unsaved" else new


def head(given: Tensors, slip: str = "") -> Tensors:
    of_token = (given["u"], given["B"], given["C"], given["delta"], given["fade"])
    y, state = token(given["state"], *of_token, slip)
    return {"y": y, "state": state}


def slots(given: Tensors, slip: str = "") -> Tensors:
    """One token of R requests: y [R, H, P] and all slots [S, H, P, N]."""
    cache, y = given["cache"].clone(), torch.empty_like(given["u"])
    rows, heads = given["delta"].shape
    for row in range(rows):
        slot = row if slip == "slot" else int(given["slots"][row])
        for h in range(heads):
            mine = 0 if slip == "head" else h
            of = 0 if slip == "rate" else h
            rates = given["delta"][row, of], given["fade"][row, of]
            B, C = given["B"][row], given["C"][row]
            if slip == "row":
                B, C = given["B"][0], given["C"][0]
            y[row, h], cache[slot, mine] = token(
                cache[slot, mine], given["u"][row, h], B, C, *rates, slip=slip
            )
    return {"y": y, "cache": cache}


def gated(y: Tensor, given: Tensors, slip: str = "") -> Tensor:
    """(y + D u) · silu(z), all [T, H, P]."""
    skip, gate = given["D"][:, None] * given["u"], F.silu(given["z"])
    if slip == "sigmoid":
        gate = torch.sigmoid(given["z"])
    if slip == "late":
        return y * gate + skip
    return (y if slip == "skip" else y + skip) * (1 if slip == "gate" else gate)


def update(given: Tensors, slip: str = "") -> Tensors:
    """All of a layer's state update for one token of R requests."""
    done = slots(given | decay(given), slip)
    return done | {"y": gated(done["y"], given, slip)}


def walk(given: Tensors, slip: str = "") -> Tensors:
    """T tokens of one request: y [T, H, P] and the last state [H, P, N]."""
    states, y = given["state"].clone(), torch.empty_like(given["u"])
    tokens, heads = given["delta"].shape
    for h in range(heads):
        state = torch.zeros_like(states[h]) if slip == "zero" else states[h]
        for t in range(tokens):
            at = 0 if slip == "first" else t
            rates = given["delta"][at, h], given["fade"][at, h]
            row = given["u"][at, h], given["B"][at], given["C"][at]
            inner = slip if slip in ("old", "faded", "delta", "fade") else ""
            y[t, h], state = token(state, *row, *rates, slip=inner)
        if slip != "unsaved":
            states[h] = state
    return {"y": y, "state": states}


def chunk(given: Tensors, slip: str = "") -> Tensors:
    """One chunk of one head by products of matrices: y [T, P] and the state [P, N] after it."""
    u, delta, B, C, state = (given[name] for name in ("u", "delta", "B", "C", "state"))
    decay = torch.cumsum(delta * given["A"], 0)  # [T]
    end, du = decay[-1], delta[:, None] * u
    between = decay[:, None] - decay[None, :]
    seen = torch.ones_like(between).tril(-1 if slip == "diagonal" else 0)
    if slip == "transposed":
        seen, between = seen.T, between.T
    weights = torch.exp(between.masked_fill(seen == 0, -torch.inf))
    if slip == "after":  # in float32, where the exponents above the diagonal overflow
        weights = (torch.exp(between.float()) * seen.float()).double()
    carried = torch.exp(end if slip == "end" else decay)
    y = (weights * (C @ B.T)) @ (u if slip == "delta" else du)
    y += (0 if slip == "carried" else 1) * carried.view(-1, 1) * (C @ state.T)
    left = torch.exp(torch.zeros_like(decay) if slip == "left" else end - decay)
    kept = state if slip == "kept" else torch.exp(end) * state
    return {"y": y, "state": kept + (left[:, None] * du).T @ B}


def scan(given: Tensors, slip: str = "", length: int = 16) -> Tensors:
    """Prompts one after the other, each from its slot's state or from none, in chunks."""
    rates = decay(given)
    cache, starts = given["cache"].clone(), given["starts"].tolist()
    y = torch.empty_like(given["u"])
    for row, slot in enumerate(given["slots"].tolist()):
        first, last = starts[row], starts[row + 1]
        past = given["has_past"][row] != 0 or slip == "peek"
        before = cache[slot] if past and slip != "past" else torch.zeros_like(cache[slot])
        state = before
        for begin in range(first, last, length):
            part = slice(begin, min(begin + length, last))
            if slip == "restart":
                state = before
            tokens = {name: given[name][part] for name in ("u", "B", "C")}
            tokens |= {name: rates[name][part] for name in ("delta", "fade")}
            done = walk(tokens | {"state": state})
            y[part], state = done["y"], done["state"]
            if slip == "padding":  # tokens behind the end fade with Δ = softplus(bias)
                padding = length - (part.stop - begin)
                more = F.softplus(given["bias"]) * given["A"] * padding
                state = torch.exp(more)[:, None, None] * state
        if slip != "unsaved":
            cache[slot] = state
    return {"y": gated(y, given, slip), "cache": cache}
