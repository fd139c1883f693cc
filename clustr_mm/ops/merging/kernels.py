"""Triton kernels of the merge; ``merge_triton.py`` launches them.

Symbols as in ``merge.py``: l are the logarithms of the tokens' weights w, and p_i is the share of
token i in its cluster.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from clustr_mm.ops.clustering.kernels import image_and_block
from clustr_mm.ops.merging import merge

EPS = tl.constexpr(merge.EPS)


@triton.jit(do_not_specialize=['total_tokens'])
def logits_kernel(
    x,
    weight,
    bias,
    logits,
    total_tokens,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A layer with one output: l = x . v + b.

    Args:
        x: (B, N, C).
        weight: v, (1, C).
        bias: b, (1,).
        logits: Written: (B, N) float32.
        total_tokens: B N.
        C: C.
        BLOCK_N: Tokens of a program.
        BLOCK_C: Channels of a tile.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = token < total_tokens
    result = tl.zeros((BLOCK_N,), tl.float32)
    for c in tl.static_range(0, C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        inside = here[:, None] & (channel < C)[None, :]
        tile = tl.load(x + token[:, None] * C + channel[None, :], mask=inside, other=0)
        factor = tl.load(weight + channel, mask=channel < C, other=0).to(tl.float32)
        result += tl.sum(tile.to(tl.float32) * factor[None, :], 1)
    tl.store(logits + token, result + tl.load(bias).to(tl.float32), mask=here)


@triton.jit(do_not_specialize=['tokens', 'clusters', 'row', 'kept_row'])
def merge_kernel(
    x,
    labels,
    logits,
    merged,
    precise,
    shift,
    total,
    tokens,
    clusters,
    row,
    kept_row,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K4: weighted means of the clusters, an attention whose mask is membership.

    A program owns BLOCK_M clusters and BLOCK_C channels and goes over all tokens in order. Tiles
    without a member are skipped; in the others the 0/w matrix of members times the tokens is a
    small matrix product. So no sorting, no atomics, no imbalance by large clusters. Weights are
    relative to the largest so far, as in merge.py and in flash attention.

    Operations: B N M comparisons and at most 2 B N M C for the products, each of them three of
    TF32: nearly float32's bits (2^-22), on tensor cores and without spilled registers. Reads 8 B N
    bytes of labels for every block of clusters, and the tiles of x that have a member; writes B M C
    values, and as many in float32.

    Args:
        x: (B, N, C).
        labels: (B, N) int64.
        logits: (B, N).
        merged: Written: cluster tokens, (B, M, C) from ``row`` on; 0 for an empty cluster.
        precise: Written: the same in float32, from ``kept_row`` on, as the next two.
        shift: Written: largest logit of the cluster, (B, M) float32; 0 for an empty one.
        total: Written: sum e^(l - shift) + eps e^(-shift), (B, M) float32.
        tokens: N.
        clusters: M.
        row: Clusters of the scales before.
        kept_row: Those of them that have labels.
        C: C.
        BLOCK_M: Clusters of a program.
        BLOCK_N: Tokens of a tile.
        BLOCK_C: Channels of a program.
    """
    channel_blocks = tl.cdiv(C, BLOCK_C)
    image, block = image_and_block(tl.cdiv(clusters, BLOCK_M) * channel_blocks)
    x += image * tokens * C
    labels += image * tokens
    logits += image * tokens
    first = block // channel_blocks * BLOCK_M
    channel = block % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    member_of = tl.arange(0, BLOCK_M)

    top = tl.full((BLOCK_M,), float('-inf'), tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), tl.float32)
    weighted = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        label = tl.load(labels + token, mask=token < tokens, other=-1).to(tl.int32) - first
        if tl.max(((label >= 0) & (label < BLOCK_M)).to(tl.int32), 0) > 0:
            member = member_of[:, None] == label[None, :]
            logit = tl.load(logits + token, mask=token < tokens, other=0).to(tl.float32)
            logit = tl.where(member, logit[None, :], float('-inf'))
            new_top = tl.maximum(top, tl.max(logit, 1))
            finite_top = tl.where(new_top == float('-inf'), 0, new_top)
            weight = tl.exp(logit - finite_top[:, None])
            shrink = tl.exp(top - finite_top)
            inside = (token < tokens)[:, None] & (channel < C)[None, :]
            tile = tl.load(x + token[:, None] * C + channel[None, :], mask=inside, other=0)
            weight_sum = weight_sum * shrink + tl.sum(weight, 1)
            weighted = tl.dot(
                weight, tile.to(tl.float32), weighted * shrink[:, None], input_precision='tf32x3'
            )
            top = new_top

    cluster = first + member_of
    top = tl.where(top == float('-inf'), 0, top)
    weight_sum += EPS * tl.exp(-top)
    here = (cluster < clusters)[:, None] & (channel < C)[None, :]
    place = (image * clusters + row + cluster)[:, None] * C + channel[None, :]
    kept = image * clusters + kept_row + cluster
    mean = weighted / weight_sum[:, None]
    tl.store(merged + place, mean, mask=here)
    tl.store(precise + kept[:, None] * C + channel[None, :], mean, mask=here)
    if block % channel_blocks == 0:
        tl.store(shift + kept, top, mask=cluster < clusters)
        tl.store(total + kept, weight_sum, mask=cluster < clusters)


@triton.jit
def _own_share(logit):
    """Weight w / (w + eps) of a token that is a cluster of its own."""
    return 1 / (1 + EPS * tl.exp(-logit))


@triton.jit(do_not_specialize=['total_tokens', 'row'])
def weigh_kernel(
    x,
    logits,
    merged,
    total_tokens,
    row,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K4 where every token is a cluster of its own: w x / (w + eps). Moves 2 B N C values.

    Args:
        x: (B, N, C).
        logits: (B, N).
        merged: Written: (B, N, C) from ``row`` on.
        total_tokens: B N.
        row: Clusters of the scales before.
        C: C.
        BLOCK_N: Tokens of a program.
        BLOCK_C: Channels of a tile.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = token < total_tokens
    share = _own_share(tl.load(logits + token, mask=here, other=0).to(tl.float32))
    for c in tl.static_range(0, C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        inside = here[:, None] & (channel < C)[None, :]
        place = token[:, None] * C + channel[None, :]
        tile = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        place = (row + token)[:, None] * C + channel[None, :]
        tl.store(merged + place, share[:, None] * tile, mask=inside)


@triton.jit(do_not_specialize=['images', 'tokens'])
def merge_backward_kernel(
    grad,
    x,
    labels,
    logits,
    weight,
    precise,
    shift,
    total,
    grad_x,
    grad_logits,
    parts,
    images,
    tokens,
    counts,
    SINGLE: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K5: gradient of the merge, a gather: every token reads its own clusters' rows.

    With p_i = e^(l_i - shift) / total and g the gradient of the token's cluster c, summed over
    scales: dl_i = p_i g . (x_i - c) and dx_i = p_i g, plus dl_i v if a layer gives l. A token that
    is a cluster of its own has p_i = w / (w + eps) and c = p_i x_i, and 1 - p_i is not taken as a
    difference: it is tiny.

    Moves 2 B N C values (x and dx; g and c come from the L2 cache, and x again). 10 operations a
    channel.

    Args:
        grad: (B (M1 + M2 + ...), C), scale after scale.
        x: (B, N, C).
        labels: For each scale (B, N) int64; anything where every token is a cluster of its own.
        logits: (B, N).
        weight: v, (1, C); None without a layer.
        precise: Cluster tokens, float32, of the scales with labels: (B (M1 + ...), C).
        shift: Their largest logits, (B (M1 + ...),) float32.
        total: Their sums of weights relative to that, (B (M1 + ...),) float32.
        grad_x: Written: (B, N, C).
        grad_logits: Written without a layer: (B, N).
        parts: Written with a layer: of each program's tokens the sums for v and b, (programs,
            C + 1) float32.
        images: B.
        tokens: N.
        counts: For each scale M.
        SINGLE: Bit s is 1 if scale s has no labels.
        C: C.
        BLOCK_N: Tokens of a program.
        BLOCK_C: Channels of a tile.
    """
    image, block = image_and_block(tl.cdiv(tokens, BLOCK_N))
    x += image * tokens * C
    grad_x += image * tokens * C
    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    here = token < tokens
    logit = tl.load(logits + image * tokens + token, mask=here, other=0).to(tl.float32)
    rest = 1 / (1 + tl.exp(logit) / EPS)

    # For each scale: the token's row in grad, that in precise, and its share.
    rows, kept_rows, shares = (), (), ()
    first = image * 0  # rows of the scales before
    kept = image * 0
    for s in tl.static_range(len(counts)):
        if (SINGLE >> s) & 1:
            label = token
            share = _own_share(logit)
            kept_rows = kept_rows + (token,)  # not read
        else:
            label = tl.load(labels[s] + image * tokens + token, mask=here, other=0).to(tl.int32)
            kept_row = kept + image * counts[s] + label
            share = tl.exp(logit - tl.load(shift + kept_row)) / tl.load(total + kept_row)
            kept_rows = kept_rows + (kept_row,)
            kept += images * counts[s]
        rows = rows + (first + image * counts[s] + label,)
        shares = shares + (share,)
        first += images * counts[s]

    of_logit = tl.zeros((BLOCK_N,), tl.float32)
    for c in tl.static_range(0, C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        inside = here[:, None] & (channel < C)[None, :]
        tile = tl.load(x + token[:, None] * C + channel[None, :], mask=inside, other=0)
        tile = tile.to(tl.float32)
        for s in tl.static_range(len(counts)):
            g = tl.load(grad + rows[s][:, None] * C + channel[None, :], mask=inside, other=0)
            if (SINGLE >> s) & 1:
                offset = rest[:, None] * tile
            else:
                place = kept_rows[s][:, None] * C + channel[None, :]
                offset = tile - tl.load(precise + place, mask=inside, other=0)
            of_logit += shares[s] * tl.sum(g.to(tl.float32) * offset, 1)

    program = tl.program_id(0).to(tl.int64)
    for c in tl.static_range(0, C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        inside = here[:, None] & (channel < C)[None, :]
        result = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for s in tl.static_range(len(counts)):
            g = tl.load(grad + rows[s][:, None] * C + channel[None, :], mask=inside, other=0)
            result += shares[s][:, None] * g.to(tl.float32)
        place = token[:, None] * C + channel[None, :]
        if weight is not None:
            factor = tl.load(weight + channel, mask=channel < C, other=0).to(tl.float32)
            result += of_logit[:, None] * factor[None, :]
            tile = tl.load(x + place, mask=inside, other=0).to(tl.float32)
            sums = tl.sum(of_logit[:, None] * tile, 0)
            tl.store(parts + program * (C + 1) + channel, sums, mask=channel < C)
        tl.store(grad_x + place, result, mask=inside)
    if weight is None:
        tl.store(grad_logits + image * tokens + token, of_logit, mask=here)
    else:
        tl.store(parts + program * (C + 1) + C, tl.sum(of_logit, 0))
