"""Triton kernels of the merge; ``triton.py`` launches them.

Symbols as in ``merge.py``: l are the logarithms of the tokens' weights w, and p_i is the share of
token i in its cluster; tokens, clusters and C are N, M and C. Tiles have BLOCK_N tokens and BLOCK_C
channels.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from clustr_mm.ops.clustering.kernels import image_and_block
from clustr_mm.ops.merging import merge

EPS = tl.constexpr(merge.EPS)


@triton.jit(do_not_specialize=['tokens', 'clusters'])
def merge_kernel(
    x,
    logits,
    order,
    starts,
    merged,
    largest,
    total,
    tokens,
    clusters,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K4: the weighted mean of one cluster, of BLOCK_C channels.

    A program reads its own cluster's tokens alone. Weights are relative to the largest so far, as
    in flash attention. Moves B N C values of x in, B M C out, and 16 B N bytes of indices and
    logits for every block of channels; about 4 operations a value.

    Arrays:
        x: (B, N, C).
        logits: l, (B, N).
        order: Tokens by cluster, (B, N) int64.
        starts: Place of each cluster's first token in that order, and of the end, (B, M + 1) int64.
        merged: Written: cluster tokens, (B, M, C) float32; 0 for an empty cluster.
        largest: Written: largest logit of the cluster, (B, M) float32; 0 for an empty one.
        total: Written: sum e^(l - largest) + eps e^(-largest), (B, M) float32.
    """
    channel_blocks = tl.cdiv(C, BLOCK_C)
    image, block = image_and_block(clusters * channel_blocks)
    cluster = block // channel_blocks
    channel = block % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    x += image * tokens * C
    logits += image * tokens
    order += image * tokens
    starts += image * (clusters + 1) + cluster
    first = tl.load(starts).to(tl.int32)
    end = tl.load(starts + 1).to(tl.int32)

    top = float('-inf')
    weight_sum = 0.0
    weighted = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, end, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        token = tl.load(order + place, mask=place < end, other=0)
        logit = tl.load(logits + token).to(tl.float32)
        logit = tl.where(place < end, logit, float('-inf'))
        new_top = tl.maximum(top, tl.max(logit, 0))
        finite_top = tl.where(new_top == float('-inf'), 0.0, new_top)
        weight = tl.exp(logit - finite_top)
        shrink = tl.exp(top - finite_top)
        inside = (place < end)[:, None] & (channel < C)[None, :]
        tile = tl.load(x + token[:, None] * C + channel[None, :], mask=inside, other=0)
        weight_sum = weight_sum * shrink + tl.sum(weight, 0)
        weighted = weighted * shrink + tl.sum(weight[:, None] * tile.to(tl.float32), 0)
        top = new_top

    top = tl.where(top == float('-inf'), 0.0, top)
    weight_sum += EPS * tl.exp(-top)
    row = image * clusters + cluster
    tl.store(merged + row * C + channel, weighted / weight_sum, mask=channel < C)
    if block % channel_blocks == 0:
        tl.store(largest + row, top)
        tl.store(total + row, weight_sum)


@triton.jit(do_not_specialize=['tokens', 'clusters'])
def merge_backward_kernel(
    grad,
    x,
    labels,
    logits,
    merged,
    largest,
    total,
    grad_x,
    grad_logits,
    tokens,
    clusters,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K5: gradient of the merge, a gather: every token reads its own cluster's row.

    With p_i = e^(l_i - largest) / total and g the gradient at the token's cluster c:
    dl_i = p_i g . (x_i - c) and dx_i = p_i g. Moves 2 B N C values (x and dx; g and c come from the
    L2 cache). About 5 operations a value.

    Arrays:
        grad: g, (B, M, C).
        x: (B, N, C).
        labels: Cluster of every token, (B, N) int64; a token of none gets 0.
        logits: (B, N).
        merged: Cluster tokens, (B, M, C) float32.
        largest: Their largest logits, (B, M) float32.
        total: Their sums of weights relative to that, (B, M) float32.
        grad_x: Written: (B, N, C).
        grad_logits: Written: (B, N).
    """
    image, block = image_and_block(tl.cdiv(tokens, BLOCK_N))
    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    here = token < tokens
    label = tl.load(labels + image * tokens + token, mask=here, other=-1)
    member = (label >= 0) & (label < clusters)
    row = image * clusters + label
    logit = tl.load(logits + image * tokens + token, mask=here, other=0).to(tl.float32)
    share = tl.exp(logit - tl.load(largest + row, mask=member, other=0))
    share = tl.where(member, share / tl.load(total + row, mask=member, other=1), 0)

    place = (image * tokens + token)[:, None] * C
    of_logit = tl.zeros((BLOCK_N,), tl.float32)
    for c in tl.static_range(0, C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)[None, :]
        inside = member[:, None] & (channel < C)
        g = tl.load(grad + row[:, None] * C + channel, mask=inside, other=0).to(tl.float32)
        mean = tl.load(merged + row[:, None] * C + channel, mask=inside, other=0)
        tile = tl.load(x + place + channel, mask=inside, other=0).to(tl.float32)
        of_logit += tl.sum(g * (tile - mean), 1)
        tl.store(grad_x + place + channel, share[:, None] * g, mask=here[:, None] & (channel < C))
    tl.store(grad_logits + image * tokens + token, share * of_logit, mask=here)
