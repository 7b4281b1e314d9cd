# mypy: disallow-untyped-defs=False
"""Our answers to the eight exercises of lesson 11, from one program to chunks with a past.

They stand in for what a reader has not written yet; the folded solutions are these functions. A
launcher writes into the tensors that it is given and makes none, so that a trial sees every touch.

Invariant: they compute what the trials' slow loops compute, run in the interpreter and compile for
a GPU; every number of a state is loaded once and stored once.
Formulas: plamo_ref/kernels/ssm/twin.py. Used by lesson 11.
"""

import triton
import triton.language as tl

from plamo_ref.kernels.launch import precision, silu, softplus


@triton.jit
def decay_kernel(dt_ptr, bias_ptr, a_ptr, delta_ptr, fade_ptr, H, BLOCK: tl.constexpr):
    token, h = tl.program_id(0), tl.arange(0, BLOCK)
    mine = h < H
    dt = tl.load(dt_ptr + token * H + h, mask=mine, other=0.0)
    x = dt.to(tl.float32) + tl.load(bias_ptr + h, mask=mine, other=0.0)
    delta = tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20.0))))
    fade = tl.exp(delta * tl.load(a_ptr + h, mask=mine, other=0.0))
    tl.store(delta_ptr + token * H + h, delta, mask=mine)
    tl.store(fade_ptr + token * H + h, fade, mask=mine)


def decay(dt, bias, A, delta, fade):
    T, H = dt.shape
    decay_kernel[(T,)](dt, bias, A, delta, fade, H, BLOCK=triton.next_power_of_2(H), num_warps=1)


@triton.jit
def conv_kernel(
    u_ptr, weight_ptr, memory_ptr, slots_ptr, out_ptr, C, K: tl.constexpr, BLOCK: tl.constexpr
):
    row, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = c < C
    memory = memory_ptr + (tl.load(slots_ptr + row) * C + c) * (K - 1)
    newest = tl.load(u_ptr + row * C + c, mask=mine, other=0.0)
    total = newest * tl.load(weight_ptr + c * K + K - 1, mask=mine, other=0.0)
    for k in tl.static_range(K - 1):
        x = tl.load(memory + k, mask=mine, other=0.0)
        total += x * tl.load(weight_ptr + c * K + k, mask=mine, other=0.0)
        if k > 0:
            tl.store(memory + k - 1, x, mask=mine)
    tl.store(memory + K - 2, newest, mask=mine)
    tl.store(out_ptr + row * C + c, silu(total.to(tl.float32)), mask=mine)


def conv_step(u, weight, memory, slots, out, BLOCK=128):
    (R, C), K = u.shape, weight.shape[1]
    conv_kernel[(R, triton.cdiv(C, BLOCK))](u, weight, memory, slots, out, C, K=K, BLOCK=BLOCK)


@triton.jit
def head_kernel(
    state_ptr, u_ptr, b_ptr, c_ptr, delta_ptr, fade_ptr, y_ptr, P, N,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    at = state_ptr + p[:, None] * N + n[None, :]
    state = tl.load(at, mask=inside, other=0.0)
    u = tl.load(u_ptr + p, mask=p < P, other=0.0)
    B = tl.load(b_ptr + n, mask=n < N, other=0.0)
    C = tl.load(c_ptr + n, mask=n < N, other=0.0)
    state = state * tl.load(fade_ptr) + (tl.load(delta_ptr) * u)[:, None] * B[None, :]
    tl.store(at, state, mask=inside)
    tl.store(y_ptr + p, tl.sum(state * C[None, :], axis=1), mask=p < P)


def head_step(state, u, B, C, delta, fade, y):
    P, N = state.shape
    blocks = {"BLOCK_P": triton.next_power_of_2(P), "BLOCK_N": triton.next_power_of_2(N)}
    head_kernel[(1,)](state, u, B, C, delta, fade, y, P, N, **blocks)


@triton.jit
def slots_kernel(
    u_ptr, b_ptr, c_ptr, delta_ptr, fade_ptr, cache_ptr, slots_ptr, y_ptr, H, P, N,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    slot = tl.load(slots_ptr + row).to(tl.int64)
    at = cache_ptr + (slot * H + head) * P * N + p[:, None] * N + n[None, :]
    state = tl.load(at, mask=inside, other=0.0)
    u = tl.load(u_ptr + (row * H + head) * P + p, mask=p < P, other=0.0)
    B = tl.load(b_ptr + row * N + n, mask=n < N, other=0.0)
    C = tl.load(c_ptr + row * N + n, mask=n < N, other=0.0)
    delta, fade = tl.load(delta_ptr + row * H + head), tl.load(fade_ptr + row * H + head)
    state = state * fade + (delta * u)[:, None] * B[None, :]
    tl.store(at, state, mask=inside)
    y = tl.sum(state * C[None, :], axis=1)
    tl.store(y_ptr + (row * H + head) * P + p, y, mask=p < P)


def slots_step(u, B, C, delta, fade, cache, slots, y):
    (R, H, P), N = u.shape, B.shape[1]
    blocks = {"BLOCK_P": triton.next_power_of_2(P), "BLOCK_N": triton.next_power_of_2(N)}
    slots_kernel[(R, H)](u, B, C, delta, fade, cache, slots, y, H, P, N, **blocks)


@triton.jit
def update_kernel(
    u_ptr, z_ptr, dt_ptr, b_ptr, c_ptr, a_ptr, d_ptr, bias_ptr, cache_ptr, slots_ptr, y_ptr,
    H, P, N, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    p, n = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    slot = tl.load(slots_ptr + row).to(tl.int64)
    at = cache_ptr + (slot * H + head) * P * N + p[:, None] * N + n[None, :]
    state = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + row * H + head).to(tl.float32)
    delta = softplus(dt + tl.load(bias_ptr + head))
    x = (row * H + head) * P + p  # places of u, z and y
    u = tl.load(u_ptr + x, mask=p < P, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + x, mask=p < P, other=0.0).to(tl.float32)
    B = tl.load(b_ptr + row * N + n, mask=n < N, other=0.0).to(tl.float32)
    C = tl.load(c_ptr + row * N + n, mask=n < N, other=0.0).to(tl.float32)
    state = state * tl.exp(delta * tl.load(a_ptr + head)) + (delta * u)[:, None] * B[None, :]
    tl.store(at, state, mask=inside)
    y = tl.sum(state * C[None, :], axis=1) + tl.load(d_ptr + head) * u
    tl.store(y_ptr + x, y * silu(z), mask=p < P)


def update(u, z, dt, B, C, A, D, bias, cache, slots, y, BLOCK_P=64):
    (R, H, P), N = u.shape, B.shape[1]
    tensors, blocks = (u, z, dt, B, C, A, D, bias, cache, slots, y), triton.cdiv(P, BLOCK_P)
    sizes = {"BLOCK_P": BLOCK_P, "BLOCK_N": triton.next_power_of_2(N)}
    update_kernel[(R, H, blocks)](*tensors, H, P, N, **sizes, num_warps=4)


@triton.jit
def walk_kernel(
    u_ptr, b_ptr, c_ptr, delta_ptr, fade_ptr, state_ptr, y_ptr, T, H, P, N,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, p, n = tl.program_id(0), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    at = state_ptr + head * P * N + p[:, None] * N + n[None, :]
    state = tl.load(at, mask=inside, other=0.0)
    for t in range(T):
        u = tl.load(u_ptr + (t * H + head) * P + p, mask=p < P, other=0.0)
        B = tl.load(b_ptr + t * N + n, mask=n < N, other=0.0)
        C = tl.load(c_ptr + t * N + n, mask=n < N, other=0.0)
        delta, fade = tl.load(delta_ptr + t * H + head), tl.load(fade_ptr + t * H + head)
        state = state * fade + (delta * u)[:, None] * B[None, :]
        y = tl.sum(state * C[None, :], axis=1)
        tl.store(y_ptr + (t * H + head) * P + p, y, mask=p < P)
    tl.store(at, state, mask=inside)


def walk(u, B, C, delta, fade, state, y):
    (T, H, P), N = u.shape, B.shape[1]
    blocks = {"BLOCK_P": triton.next_power_of_2(P), "BLOCK_N": triton.next_power_of_2(N)}
    walk_kernel[(H,)](u, B, C, delta, fade, state, y, T, H, P, N, **blocks)


@triton.jit
def chunk_step(state, u, delta, a, B, C, Q: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, Q)
    decay = tl.cumsum(delta * a, axis=0)  # l: its logarithm, up to each token
    end = tl.sum(delta * a, axis=0)
    between = decay[:, None] - decay[None, :]
    between = tl.where(i[:, None] >= i[None, :], between, float("-inf"))
    weights = tl.exp(between) * tl.dot(C, tl.trans(B), input_precision=PRECISION)
    du = delta[:, None] * u
    y = tl.dot(weights, du, input_precision=PRECISION)
    y += tl.exp(decay)[:, None] * tl.dot(C, tl.trans(state), input_precision=PRECISION)
    left = tl.exp(end - decay)[:, None] * du
    state = state * tl.exp(end) + tl.dot(tl.trans(left), B, input_precision=PRECISION)
    return y, state


@triton.jit
def chunk_kernel(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, state_ptr, y_ptr, T, P, N,
    Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    t, p, n = tl.arange(0, Q), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    at = state_ptr + p[:, None] * N + n[None, :]
    state = tl.load(at, mask=inside, other=0.0)
    live, live_n = t < T, (t < T)[:, None] & (n < N)[None, :]
    live_p = live[:, None] & (p < P)[None, :]
    delta = tl.load(delta_ptr + t, mask=live, other=0.0)
    u = tl.load(u_ptr + t[:, None] * P + p[None, :], mask=live_p, other=0.0)
    B = tl.load(b_ptr + t[:, None] * N + n[None, :], mask=live_n, other=0.0)
    C = tl.load(c_ptr + t[:, None] * N + n[None, :], mask=live_n, other=0.0)
    y, state = chunk_step(state, u, delta, tl.load(a_ptr), B, C, Q, PRECISION)
    tl.store(y_ptr + t[:, None] * P + p[None, :], y, mask=live_p)
    tl.store(at, state, mask=inside)


def chunk(u, delta, A, B, C, state, y):
    (T, P), N = u.shape, B.shape[1]
    Q, BLOCK_P, BLOCK_N = (max(16, triton.next_power_of_2(size)) for size in (T, P, N))
    sizes = {"Q": Q, "BLOCK_P": BLOCK_P, "BLOCK_N": BLOCK_N, "PRECISION": precision(u.dtype)}
    chunk_kernel[(1,)](u, delta, A, B, C, state, y, T, P, N, **sizes)


@triton.jit
def scan_kernel(
    u_ptr, z_ptr, dt_ptr, b_ptr, c_ptr, a_ptr, d_ptr, bias_ptr, cache_ptr, slots_ptr, starts_ptr,
    has_past_ptr, y_ptr, H, P, N, Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    request, head = tl.program_id(0), tl.program_id(1)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    slot = tl.load(slots_ptr + request).to(tl.int64)
    at = cache_ptr + (slot * H + head) * P * N + p[:, None] * N + n[None, :]
    known = tl.where(tl.load(has_past_ptr + request) != 0, P, 0)  # rows of the state
    state = tl.load(at, mask=inside & (p < known)[:, None], other=0.0).to(tl.float32)
    first, end = tl.load(starts_ptr + request), tl.load(starts_ptr + request + 1)
    a, skip, bias = tl.load(a_ptr + head), tl.load(d_ptr + head), tl.load(bias_ptr + head)
    for start in range(first, end, Q):
        t = start + tl.arange(0, Q)
        live, live_n = t < end, (t < end)[:, None] & (n < N)[None, :]
        live_p, x = live[:, None] & (p < P)[None, :], (t[:, None] * H + head) * P + p[None, :]
        dt = tl.load(dt_ptr + t * H + head, mask=live, other=0.0).to(tl.float32)
        delta = tl.where(live, softplus(dt + bias), 0.0)
        u = tl.load(u_ptr + x, mask=live_p, other=0.0).to(tl.float32)
        z = tl.load(z_ptr + x, mask=live_p, other=0.0).to(tl.float32)
        B = tl.load(b_ptr + t[:, None] * N + n[None, :], mask=live_n, other=0.0).to(tl.float32)
        C = tl.load(c_ptr + t[:, None] * N + n[None, :], mask=live_n, other=0.0).to(tl.float32)
        y, state = chunk_step(state, u, delta, a, B, C, Q, PRECISION)
        tl.store(y_ptr + x, (y + skip * u) * silu(z), mask=live_p)
    tl.store(at, state, mask=inside)


def scan(u, z, dt, B, C, A, D, bias, cache, slots, starts, has_past, y, Q=16):
    (H, P), N = u.shape[1:], B.shape[1]
    tensors = (u, z, dt, B, C, A, D, bias, cache, slots, starts, has_past, y)
    BLOCK_P, BLOCK_N = (max(16, triton.next_power_of_2(size)) for size in (P, N))
    sizes = {"Q": Q, "BLOCK_P": BLOCK_P, "BLOCK_N": BLOCK_N, "PRECISION": precision(u.dtype)}
    scan_kernel[(len(slots), H)](*tensors, H, P, N, **sizes)
