# mypy: disallow-untyped-defs=False
"""Lesson 10's seven kernels, each with its launcher, as its folded solutions have them.

Invariant: float32, tiles that are powers of two, one request's keys never loaded for another; each
compiles for sm_90 as well as it is interpreted.
To be imported after `lane()` has said where kernels run.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.config import QK_NORM_EPS


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = place < n
    tl.store(out_ptr + place, tl.load(x_ptr + place, mask=mine), mask=mine)


def copy(x: Tensor, out: Tensor) -> None:
    n = len(x)
    copy_kernel[(triton.cdiv(n, 8),)](x, out, n, BLOCK=8)


@triton.jit
def norm_kernel(x_ptr, gain_ptr, out_ptr, D, eps, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    mine = i < D
    x = tl.load(x_ptr + row * D + i, mask=mine, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    gain = tl.load(gain_ptr + i, mask=mine, other=0.0)
    tl.store(out_ptr + row * D + i, x * scale * gain, mask=mine)


def norm(x: Tensor, gain: Tensor, out: Tensor) -> None:
    T, D = x.shape
    norm_kernel[(T,)](x, gain, out, D, 1e-6, BLOCK=triton.next_power_of_2(D))


@triton.jit
def rotate_kernel(x_ptr, gain_ptr, cos_ptr, sin_ptr, out_ptr, H, eps, HALF: tl.constexpr):
    token, head, i = tl.program_id(0), tl.program_id(1), tl.arange(0, HALF)
    at = (token * H + head) * 2 * HALF + i
    x1, x2 = tl.load(x_ptr + at), tl.load(x_ptr + at + HALF)
    scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=0) / (2 * HALF) + eps)
    x1 *= scale * tl.load(gain_ptr + head * 2 * HALF + i)
    x2 *= scale * tl.load(gain_ptr + head * 2 * HALF + HALF + i)
    cos, sin = tl.load(cos_ptr + token * HALF + i), tl.load(sin_ptr + token * HALF + i)
    tl.store(out_ptr + at, x1 * cos - x2 * sin)
    tl.store(out_ptr + at + HALF, x2 * cos + x1 * sin)


def rotate(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    T, H, P = x.shape
    rotate_kernel[(T, H)](x, gain, cos, sin, out, H, QK_NORM_EPS, HALF=P // 2)


@triton.jit
def write_kernel(new_ptr, cache_ptr, slots_ptr, WIDTH, BLOCK: tl.constexpr):
    token, i = tl.program_id(0), tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + token)
    x = tl.load(new_ptr + token * WIDTH + i, mask=i < WIDTH)
    if slot >= 0:
        tl.store(cache_ptr + slot * WIDTH + i, x, mask=i < WIDTH)


def write(new: Tensor, cache: Tensor, slots: Tensor) -> None:
    T, G, P = new.shape
    BLOCK = triton.next_power_of_2(G * P)
    write_kernel[(T,)](new, cache, slots, G * P, BLOCK=BLOCK)


@triton.jit
def attend_kernel(
    q_ptr, keys_ptr, values_ptr, out_ptr, S, scale, P: tl.constexpr, TILE: tl.constexpr
):
    head, p = tl.program_id(0), tl.arange(0, P)
    q = tl.load(q_ptr + head * P + p) * scale
    m, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    acc = tl.zeros((P,), tl.float32)
    for start in range(0, S, TILE):
        s = start + tl.arange(0, TILE)
        seen = s < S
        at = s[:, None] * P + p[None, :]
        k = tl.load(keys_ptr + at, mask=seen[:, None], other=0.0)
        v = tl.load(values_ptr + at, mask=seen[:, None], other=0.0)
        scores = tl.where(seen, tl.sum(q[None, :] * k, axis=1), float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, axis=0))
        old, weights = tl.exp2(m - m_new), tl.exp2(scores - m_new)
        total = total * old + tl.sum(weights, axis=0)
        acc = acc * old + tl.sum(weights[:, None] * v, axis=0)
        m = m_new
    tl.store(out_ptr + head * P + p, acc / total)


def attend(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    (H, P), S = q.shape, len(keys)
    scale = math.log2(math.e) / math.sqrt(P)
    attend_kernel[(H,)](q, keys, values, out, S, scale, P=P, TILE=16)


@triton.jit
def walk(
    q, keys_ptr, values_ptr, table_ptr, begin, end, group,
    SIZE: tl.constexpr, G: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    m = tl.full((q.shape[0], 1), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0], 1), tl.float32)
    acc = tl.zeros((q.shape[0], P), tl.float32)
    for start in range(begin, end, TILE):
        s = start + tl.arange(0, TILE)
        seen = s < end
        block = tl.load(table_ptr + s // SIZE, mask=seen, other=0)
        row = (block * SIZE + s % SIZE) * G + group
        at = row[:, None] * P + tl.arange(0, P)[None, :]
        k = tl.load(keys_ptr + at, mask=seen[:, None], other=0.0)
        v = tl.load(values_ptr + at, mask=seen[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        scores = tl.where(seen[None, :], scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, axis=1, keep_dims=True))
        old, weights = tl.exp2(m - m_new), tl.exp2(scores - m_new)
        total = total * old + tl.sum(weights, axis=1, keep_dims=True)
        acc = tl.dot(weights, v, acc=acc * old, input_precision="tf32x3")
        m = m_new
    return m, total, acc


@triton.jit
def decode_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, lens_ptr, out_ptr, scale, M, window,
    SIZE: tl.constexpr, G: tl.constexpr, HEADS: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    request, group, h = tl.program_id(0), tl.program_id(1), tl.arange(0, 16)
    at = ((request * G + group) * HEADS + h)[:, None] * P + tl.arange(0, P)[None, :]
    real = (h < HEADS)[:, None]
    q = tl.load(q_ptr + at, mask=real, other=0.0) * scale
    length = tl.load(lens_ptr + request)
    begin = tl.maximum(length - 1 - window, 0)
    table_ptr += request * M
    _, total, acc = walk(q, keys_ptr, values_ptr, table_ptr, begin, length, group, SIZE, G, P, TILE)
    tl.store(out_ptr + at, acc / total, mask=real)


def decode(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lens: Tensor, window: int, out: Tensor
) -> None:
    (R, H, P), (SIZE, G) = q.shape, keys.shape[1:3]
    scale = math.log2(math.e) / math.sqrt(P)
    sizes = {"SIZE": SIZE, "G": G, "HEADS": H // G, "P": P, "TILE": 16}
    given = (q, keys, values, table, lens, out, scale, table.shape[1], window)
    decode_kernel[(R, G)](*given, **sizes)


@triton.jit
def split_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, lens_ptr, parts_ptr, scale, M, window,
    SIZE: tl.constexpr, G: tl.constexpr, HEADS: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    request, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    h, p = tl.arange(0, 16)[:, None], tl.arange(0, P)[None, :]
    head = (request * G + group) * HEADS + h
    real = h < HEADS
    q = tl.load(q_ptr + head * P + p, mask=real, other=0.0) * scale
    length = tl.load(lens_ptr + request)
    low = tl.maximum(length - 1 - window, 0)
    share = tl.cdiv(tl.cdiv(length - low, TILE), PARTS) * TILE
    begin = low + part * share
    end = tl.minimum(begin + share, length)
    table_ptr += request * M
    m, total, acc = walk(q, keys_ptr, values_ptr, table_ptr, begin, end, group, SIZE, G, P, TILE)
    to = parts_ptr + (head * PARTS + part) * (P + 2)
    tl.store(to + p, acc, mask=real)
    tl.store(to + P, m, mask=real)
    tl.store(to + P + 1, total, mask=real)


@triton.jit
def join_kernel(parts_ptr, out_ptr, PARTS: tl.constexpr, P: tl.constexpr):
    head, part, p = tl.program_id(0), tl.arange(0, PARTS)[:, None], tl.arange(0, P)[None, :]
    at = parts_ptr + (head * PARTS + part) * (P + 2)
    m, total, acc = tl.load(at + P), tl.load(at + P + 1), tl.load(at + p)
    weight = tl.exp2(m - tl.max(m, axis=0, keep_dims=True))
    out = tl.sum(weight * acc, axis=0) / tl.sum(weight * total, axis=0)
    tl.store(out_ptr + head * P + tl.arange(0, P), out)


def split_decode(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lens: Tensor, window: int,
    parts: Tensor, out: Tensor,
) -> None:  # fmt: skip
    (R, H, P), (SIZE, G), PARTS = q.shape, keys.shape[1:3], parts.shape[2]
    scale = math.log2(math.e) / math.sqrt(P)
    sizes = {"SIZE": SIZE, "G": G, "HEADS": H // G, "P": P, "TILE": 16, "PARTS": PARTS}
    given = (q, keys, values, table, lens, parts, scale, table.shape[1], window)
    split_kernel[(R, G, PARTS)](*given, **sizes)
    join_kernel[(R * H,)](parts, out, PARTS=PARTS, P=P)
