"""Triton kernels of a residual sum and its LayerNorm; ``add_norm.py`` launches them.

A program takes whole tokens, BLOCK_N at a time, so that means are sums along a row of registers.
Symbols: t = x + s y, R = B N tokens of C channels.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normalise(t, inside, eps, C: tl.constexpr):
    """(t - mean) / deviation, and 1 / deviation; 0 outside."""
    centred = tl.where(inside, t - (tl.sum(t, 1) / C)[:, None], 0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def _load_scale(scale, token, tokens, total_tokens):
    """Loads s of every token's image; 1 without any."""
    if scale is None:
        factor = tl.full(token.shape, 1.0, tl.float32)
    else:
        factor = tl.load(scale + token // tokens, mask=token < total_tokens, other=0)
    return factor.to(tl.float32)


@triton.jit(do_not_specialize=['total_tokens', 'tokens'])
def add_norm_kernel(
    x,
    y,
    scale,
    weight,
    bias,
    total,
    normed,
    unrounded,
    total_tokens,
    tokens,
    eps,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums t = x + s y and normalises it. Moves 4 values a token and channel, or 5.

    Args:
        x: (B, N, C).
        y: (B, N, C).
        scale: s, (B,), or None.
        weight: (C,).
        bias: (C,).
        total: Written: t, (B, N, C).
        normed: Written: LN(t), (B, N, C).
        unrounded: Written unless None: LN(t), (B, N, C), in another dtype.
        total_tokens: R.
        tokens: N.
        eps: Added to the variance.
        C: C.
        BLOCK_N: Tokens of a program.
        BLOCK_C: A power of two that holds C.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    inside = (token < total_tokens)[:, None] & (channel < C)[None, :]
    place = token[:, None] * C + channel[None, :]
    own = tl.load(y + place, mask=inside, other=0).to(tl.float32)
    own *= _load_scale(scale, token, tokens, total_tokens)[:, None]
    t = tl.load(x + place, mask=inside, other=0).to(tl.float32) + own
    t = t.to(total.dtype.element_ty)
    tl.store(total + place, t, mask=inside)
    standard, _ = _normalise(t.to(tl.float32), inside, eps, C)
    factor = tl.load(weight + channel, mask=channel < C, other=0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < C, other=0).to(tl.float32)
    result = standard * factor[None, :] + shift[None, :]
    tl.store(normed + place, result, mask=inside)
    if unrounded is not None:
        tl.store(unrounded + place, result, mask=inside)


@triton.jit(do_not_specialize=['total_tokens', 'tokens'])
def add_norm_backward_kernel(
    grad_total,
    grad_normed,
    total,
    scale,
    weight,
    grad_x,
    grad_y,
    parts,
    total_tokens,
    tokens,
    eps,
    C: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradients of x and y, and the sums of the weights' gradients.

    With n the standardised t, h the gradient at LN(t) times the weight, and means along the
    channels, the norm's gradient at t is (h - mean(h) - n mean(h n)) / deviation; what arrives at t
    itself is added, and y gets s times the sum. Moves 5 values a token and channel.

    Args:
        grad_total: Gradient at t, (B, N, C), or None for 0.
        grad_normed: Gradient at LN(t), (B, N, C).
        total: t, (B, N, C).
        scale: s, (B,), or None.
        weight: (C,).
        grad_x: Written: (B, N, C).
        grad_y: Written: (B, N, C).
        parts: Written: of each program's tokens the sums for weight and bias, (programs, 2, C)
            float32.
        total_tokens: R.
        tokens: N.
        eps: Added to the variance.
        C: C.
        TILES: Tiles of tokens of a program.
        BLOCK_N: Tokens of a tile.
        BLOCK_C: A power of two that holds C.
    """
    channel = tl.arange(0, BLOCK_C)
    factor = tl.load(weight + channel, mask=channel < C, other=0).to(tl.float32)
    of_weight = tl.zeros((BLOCK_C,), tl.float32)
    of_bias = tl.zeros((BLOCK_C,), tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for tile in range(TILES):
        token = (program * TILES + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (token < total_tokens)[:, None] & (channel < C)[None, :]
        place = token[:, None] * C + channel[None, :]
        t = tl.load(total + place, mask=inside, other=0).to(tl.float32)
        standard, inverse = _normalise(t, inside, eps, C)
        arriving = tl.load(grad_normed + place, mask=inside, other=0).to(tl.float32)
        of_weight += tl.sum(arriving * standard, 0)
        of_bias += tl.sum(arriving, 0)
        h = arriving * factor[None, :]
        along = (tl.sum(h * standard, 1) / C)[:, None]
        grad = (h - (tl.sum(h, 1) / C)[:, None] - standard * along) * inverse[:, None]
        if grad_total is not None:
            grad += tl.load(grad_total + place, mask=inside, other=0).to(tl.float32)
        tl.store(grad_x + place, grad, mask=inside)
        grad *= _load_scale(scale, token, tokens, total_tokens)[:, None]
        tl.store(grad_y + place, grad, mask=inside)
    tl.store(parts + program * 2 * C + channel, of_weight, mask=channel < C)
    tl.store(parts + program * 2 * C + C + channel, of_bias, mask=channel < C)
