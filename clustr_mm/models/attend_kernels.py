"""Triton kernels of attention to the tokens of several scales; ``attend.py`` launches them.

Symbols: per head q_i, k_j, v_j of D channels, s_ij = q_i . k_j / sqrt(D), p the softmax of s along
j, o_i = sum over scales of sum_j p_ij v_j. Keys pass in tiles, with the softmax of what has passed
rescaled to the largest s so far (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv
2205.14135). Nothing is kept for the backward pass but queries, keys and values: keys are few.
Exponentials are of base 2, so FACTOR is log2(e) / sqrt(D).
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(start, row, rows, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Loads rows of a head as a (rows, BLOCK_D) tile, 0 outside."""
    channel = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (channel < D)[None, :]
    return tl.load(start + row[:, None] * stride + channel[None, :], mask=inside, other=0)


@triton.jit
def _store(start, row, rows, stride, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores a tile that ``_load`` would load."""
    channel = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (channel < D)[None, :]
    tl.store(start + row[:, None] * stride + channel[None, :], tile, mask=inside)


@triton.jit
def _scores(queries, keys, column, count, FACTOR: tl.constexpr):
    """log2(e) s of a tile; -inf where there is no key."""
    s = tl.dot(queries, keys.T) * FACTOR
    return tl.where((column < count)[None, :], s, float('-inf'))


@triton.jit
def _image_head_block(blocks, HEADS: tl.constexpr):
    """Splits the program's number into image (int64), head and block."""
    program = tl.program_id(0)
    return (program // (blocks * HEADS)).to(tl.int64), program // blocks % HEADS, program % blocks


@triton.jit(do_not_specialize=['tokens'])
def attend_kernel(
    q,
    kvs,
    out,
    counts,
    tokens,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attention of every token to the tokens of every scale, and the sum over the scales.

    Operations: 4 B N M C, M the sum over the scales. Moves 2 values a token and channel and,
    through the L2 cache, 2 M C for every block of tokens.

    Args:
        q: Queries, (B, N, C), C = HEADS D.
        kvs: For each scale keys and values, (B, M, 2 C).
        out: Written: (B, N, C).
        counts: For each scale M.
        tokens: N.
        HEADS: Heads.
        D: Channels of a head.
        FACTOR: log2(e) / sqrt(D).
        BLOCK_M: Keys of a tile.
        BLOCK_N: Tokens of a program.
        BLOCK_D: A power of two that holds D.
    """
    C: tl.constexpr = HEADS * D
    image, head, block = _image_head_block(tl.cdiv(tokens, BLOCK_N), HEADS)
    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    start = image * tokens * C + head * D
    queries = _load(q + start, token, tokens, C, D, BLOCK_D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for scale in tl.static_range(len(counts)):
        count = counts[scale]
        kv = kvs[scale] + image * count * 2 * C + head * D
        largest = tl.full((BLOCK_N,), float('-inf'), tl.float32)
        sums = tl.zeros((BLOCK_N,), tl.float32)
        weighed = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in range(0, count, BLOCK_M):
            column = first + tl.arange(0, BLOCK_M)
            keys = _load(kv, column, count, 2 * C, D, BLOCK_D)
            values = _load(kv + C, column, count, 2 * C, D, BLOCK_D)
            s = _scores(queries, keys, column, count, FACTOR)
            so_far = tl.maximum(largest, tl.max(s, 1))
            shrink = tl.exp2(largest - so_far)
            e = tl.exp2(s - so_far[:, None])
            sums = sums * shrink + tl.sum(e, 1)
            weighed = tl.dot(e.to(values.dtype), values, weighed * shrink[:, None])
            largest = so_far
        total += weighed / sums[:, None]
    _store(out + start, token, tokens, C, total, D, BLOCK_D)


@triton.jit(do_not_specialize=['images', 'tokens'])
def attend_backward_kernel(
    grad,
    q,
    kvs,
    grad_q,
    facts,
    counts,
    images,
    tokens,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of the queries, and what the keys' kernel needs to know of every row.

    With g the gradient at o: g_ij = g_i . v_j is the gradient at p_ij, p_ij (g_ij - mean_i) that
    at s_ij, mean_i = sum_j p_ij g_ij, and q_i gets sum_j k_j / sqrt(D) of it. Operations:
    10 B N M C. Moves 3 values a token and channel, and 8 bytes a token, head and scale.

    Args:
        grad: g, (B, N, C).
        q: (B, N, C).
        kvs: See ``attend_kernel``.
        grad_q: Written: (B, N, C).
        facts: Written: for every scale and head the logarithm (base 2) of a row's sum of
            exponentials, and mean_i, (S, B, HEADS, 2, N) float32.
        counts: For each scale M.
        images: B.
        tokens: N.
        HEADS: Heads.
        D: Channels of a head.
        FACTOR: log2(e) / sqrt(D).
        BLOCK_M: Keys of a tile.
        BLOCK_N: Tokens of a program.
        BLOCK_D: A power of two that holds D.
    """
    C: tl.constexpr = HEADS * D
    image, head, block = _image_head_block(tl.cdiv(tokens, BLOCK_N), HEADS)
    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    start = image * tokens * C + head * D
    queries = _load(q + start, token, tokens, C, D, BLOCK_D)
    g = _load(grad + start, token, tokens, C, D, BLOCK_D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for scale in tl.static_range(len(counts)):
        count = counts[scale]
        kv = kvs[scale] + image * count * 2 * C + head * D
        largest = tl.full((BLOCK_N,), float('-inf'), tl.float32)
        sums = tl.zeros((BLOCK_N,), tl.float32)
        mean = tl.zeros((BLOCK_N,), tl.float32)
        for first in range(0, count, BLOCK_M):
            column = first + tl.arange(0, BLOCK_M)
            keys = _load(kv, column, count, 2 * C, D, BLOCK_D)
            values = _load(kv + C, column, count, 2 * C, D, BLOCK_D)
            s = _scores(queries, keys, column, count, FACTOR)
            so_far = tl.maximum(largest, tl.max(s, 1))
            shrink = tl.exp2(largest - so_far)
            e = tl.exp2(s - so_far[:, None])
            sums = sums * shrink + tl.sum(e, 1)
            mean = mean * shrink + tl.sum(e * tl.dot(g, values.T), 1)
            largest = so_far
        log_sum = largest + tl.log2(sums)
        mean /= sums
        fact = facts + ((scale * images + image) * HEADS + head) * 2 * tokens + token
        tl.store(fact, log_sum, mask=token < tokens)
        tl.store(fact + tokens, mean, mask=token < tokens)
        for first in range(0, count, BLOCK_M):
            column = first + tl.arange(0, BLOCK_M)
            keys = _load(kv, column, count, 2 * C, D, BLOCK_D)
            values = _load(kv + C, column, count, 2 * C, D, BLOCK_D)
            p = tl.exp2(_scores(queries, keys, column, count, FACTOR) - log_sum[:, None])
            of_s = p * (tl.dot(g, values.T) - mean[:, None])
            total = tl.dot(of_s.to(keys.dtype), keys, total)
    total *= FACTOR / LOG2E
    _store(grad_q + start, token, tokens, C, total, D, BLOCK_D)


@triton.jit(do_not_specialize=['images', 'tokens'])
def attend_backward_keys_kernel(
    grad,
    q,
    kvs,
    grad_kvs,
    facts,
    counts,
    images,
    tokens,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradients of keys and values: a program sums them for some keys over all tokens.

    v_j gets sum_i p_ij g_i, and k_j gets sum_i q_i / sqrt(D) of the gradient at s_ij. Operations:
    8 B N M C. Moves 2 values a token and channel, for every block of keys through the L2 cache.

    Args:
        grad: g, (B, N, C).
        q: (B, N, C).
        kvs: See ``attend_kernel``.
        grad_kvs: Written: for each scale (B, M, 2 C).
        facts: By ``attend_backward_kernel``.
        counts: For each scale M.
        images: B.
        tokens: N.
        HEADS: Heads.
        D: Channels of a head.
        FACTOR: log2(e) / sqrt(D).
        BLOCK_M: Keys of a program.
        BLOCK_N: Tokens of a tile.
        BLOCK_D: A power of two that holds D.
    """
    C: tl.constexpr = HEADS * D
    blocks = 0
    for scale in tl.static_range(len(counts)):
        blocks += tl.cdiv(counts[scale], BLOCK_M)
    image, head, block = _image_head_block(blocks, HEADS)
    start = image * tokens * C + head * D
    for scale in tl.static_range(len(counts)):
        count = counts[scale]
        if (block >= 0) & (block < tl.cdiv(count, BLOCK_M)):
            row = block * BLOCK_M + tl.arange(0, BLOCK_M)
            place = image * count * 2 * C + head * D
            keys = _load(kvs[scale] + place, row, count, 2 * C, D, BLOCK_D)
            values = _load(kvs[scale] + place + C, row, count, 2 * C, D, BLOCK_D)
            fact = facts + ((scale * images + image) * HEADS + head) * 2 * tokens
            of_keys = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            of_values = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for first in range(0, tokens, BLOCK_N):
                token = first + tl.arange(0, BLOCK_N)
                queries = _load(q + start, token, tokens, C, D, BLOCK_D)
                g = _load(grad + start, token, tokens, C, D, BLOCK_D)
                here = token < tokens
                log_sums = tl.load(fact + token, mask=here, other=float('inf'))
                mean = tl.load(fact + tokens + token, mask=here, other=0)
                # Transposed: keys along the rows.
                p = tl.exp2(tl.dot(keys, queries.T) * FACTOR - log_sums[None, :])
                of_values = tl.dot(p.to(g.dtype), g, of_values)
                of_s = p * (tl.dot(values, g.T) - mean[None, :])
                of_keys = tl.dot(of_s.to(queries.dtype), queries, of_keys)
            of_keys *= FACTOR / LOG2E
            _store(grad_kvs[scale] + place, row, count, 2 * C, of_keys, D, BLOCK_D)
            _store(grad_kvs[scale] + place + C, row, count, 2 * C, of_values, D, BLOCK_D)
        block -= tl.cdiv(count, BLOCK_M)
