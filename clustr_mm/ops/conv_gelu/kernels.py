"""Triton kernels of GELU(u + DWConv3x3(u)); ``triton.py`` launches them.

A program takes BLOCK_N tokens that follow each other in the map, over its rows' ends, and BLOCK_C
channels. The nine tokens around each lie in the caches, for programs beside each other run at the
same time. Symbols: an image is H x W tokens of C channels; v = u + DWConv(u).
The backward pass sums over TILES tiles a program.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from clustr_mm.ops.clustering.kernels import image_and_block

SQRT_HALF = tl.constexpr(0.5**0.5)
NORMAL = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def _load_neighbours(x, token, height, width, channel, tap, C: tl.constexpr):
    """Loads what a tap of the convolution meets at each token, 0 outside of the map."""
    row = token // width + tap // 3 - 1
    column = token % width + tap % 3 - 1
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = (row * width + column)[:, None] * C + channel[None, :]
    inside &= token < height * width
    tile = tl.load(x + place, mask=inside[:, None] & (channel < C)[None, :], other=0)
    return tile.to(tl.float32)


@triton.jit(do_not_specialize=['height', 'width'])
def conv_gelu_kernel(
    u,
    weight,
    bias,
    grad,
    out,
    height,
    width,
    C: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """GELU(v), or for the backward pass the gradient at v, which is made again from u.

    With Phi and phi the normal distribution and its density, GELU(v) = v Phi(v), and the gradient g
    at GELU(v) becomes g (Phi(v) + v phi(v)) at v. Moves 2 values a token and channel, 3 for the
    gradient; about 50 operations each.

    Arrays:
        u: (B, H W, C).
        weight: (C, 1, 3, 3).
        bias: (C,).
        grad: g, (B, H W, C); read with ``BACKWARD`` only.
        out: Written: GELU(v) or the gradient at v, (B, H W, C).
    """
    channel_blocks = tl.cdiv(C, BLOCK_C)
    image, block = image_and_block(tl.cdiv(height * width, BLOCK_N) * channel_blocks)
    start = image * height * width * C
    token = block // channel_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = block % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    own_bias = tl.load(bias + channel, mask=channel < C, other=0).to(tl.float32)
    v = tl.zeros((BLOCK_N, BLOCK_C), tl.float32) + own_bias[None, :]
    for tap in tl.static_range(9):
        near = _load_neighbours(u + start, token, height, width, channel, tap, C)
        own = tl.load(weight + channel * 9 + tap, mask=channel < C, other=0).to(tl.float32)
        v += near * own[None, :]
        if tap == 4:
            v += near
    here = (token < height * width)[:, None] & (channel < C)[None, :]
    place = start + token[:, None] * C + channel[None, :]
    share = 0.5 * (1 + tl.erf(v * SQRT_HALF))
    if BACKWARD:
        slope = share + v * NORMAL * tl.exp(-0.5 * v * v)
        tl.store(out + place, slope * tl.load(grad + place, mask=here).to(tl.float32), mask=here)
    else:
        tl.store(out + place, v * share, mask=here)


@triton.jit(do_not_specialize=['height', 'width'])
def conv_backward_kernel(
    grad_v,
    u,
    weight,
    grad_u,
    parts,
    height,
    width,
    C: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient at u, and the sums of the weights' gradients.

    A token's u went to v of its nine neighbours, by the taps turned round; its gradient comes back
    the same way. What a tap brings back, times the token's own u, is the token's share in the
    gradient of the tap's weight. Moves 3 values a token and channel, about 40 operations each.

    Arrays:
        grad_v: Gradient at v, (B, H W, C).
        u: (B, H W, C).
        weight: (C, 1, 3, 3).
        grad_u: Written: (B, H W, C).
        parts: Written: of each program's tokens the sums for the weight and the bias,
            (programs, 9 C + C) float32.
    """
    tokens = height * width
    channel_blocks = tl.cdiv(C, BLOCK_C)
    chunks = tl.cdiv(tokens, TILES * BLOCK_N)
    image, block = image_and_block(chunks * channel_blocks)
    image_start = image * tokens * C
    chunk = block // channel_blocks
    channel = block % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)

    sums = ()
    for _ in tl.static_range(10):
        sums = sums + (tl.zeros((BLOCK_C,), tl.float32),)
    first = chunk * TILES * BLOCK_N
    for start in range(first, tl.minimum(first + TILES * BLOCK_N, tokens), BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        here = (token < tokens)[:, None] & (channel < C)[None, :]
        place = image_start + token[:, None] * C + channel[None, :]
        own_u = tl.load(u + place, mask=here, other=0).to(tl.float32)
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        added = ()
        for tap in tl.static_range(9):
            near = _load_neighbours(grad_v + image_start, token, height, width, channel, 8 - tap, C)
            own = tl.load(weight + channel * 9 + tap, mask=channel < C, other=0).to(tl.float32)
            total += near * own[None, :]
            added = added + (sums[tap] + tl.sum(near * own_u, 0),)
            if tap == 4:
                total += near
                of_bias = sums[9] + tl.sum(near, 0)
        sums = added + (of_bias,)
        tl.store(grad_u + place, total, mask=here)
    parts += (image * chunks + chunk) * 10 * C
    for tap in tl.static_range(9):
        tl.store(parts + channel * 9 + tap, sums[tap], mask=channel < C)
    tl.store(parts + 9 * C + channel, sums[9], mask=channel < C)
