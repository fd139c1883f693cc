"""K0 to K3 of few tokens in one launch: one program clusters a whole image.

The thirteen blocks of ClusTR-S's stage 3 cluster 196 tokens of an image of 224 x 224. For four
kernels, two sorts and what lies between, the host would take longer to launch than the GPU to
compute. Here the steps follow each other in one program, a loop each, and what is between them lies
in memory that no other program touches; a barrier shows it to all threads of this one.

Nothing is sorted: of so few tokens every pair can be compared. A token's rank is the number of
tokens that come before it, and its denser tokens are masked out of all.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from clustr_mm.ops.clustering.kernels import (
    _assign_rows,
    _density_of_rows,
    _distance2,
    _load_rows,
    _origin,
    _partial_distance2,
    _prepare_rows,
    _scale,
)


@triton.jit(do_not_specialize=['images', 'tokens'])
def whole_image_kernel(
    x,
    keys,
    facts,
    labels,
    counts,
    images,
    tokens,
    padded,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Clusters image after image, a program each.

    Operations: 4 B N'^2 C' for the density and the score, 2 B N' M C' for the labels, M the largest
    count. Moves 2 B N C values of x, B N' C' values of keys and 8 B N bytes of labels a scale; what
    is read again lies in the caches.

    Args:
        x: (B, N, C), float32, float16 or bfloat16.
        keys: Overwritten: the rounded tokens, see ``prepare_kernel``.
        facts: Overwritten: of every token the squared norm, the log-density, the score and, by
            rank, the centre's index (exact in float32), (B, 4, N').
        labels: Written: for each count the rank of the nearest centre, (S, B, N) int64; the lowest
            rank on ties.
        counts: The S cluster counts, ascending.
        images: B.
        tokens: N.
        padded: N'.
        C: C.
        PADDED_C: C'.
        NEIGHBOURS: k - 1.
        PRECISION: As for ``prepare_kernel``.
        BLOCK_M: Tokens of a step; divides N'.
        BLOCK_N: Columns of a tile; divides BLOCK_M.
        BLOCK_C: Channels of a tile; divides C'.
    """
    WIDTH: tl.constexpr = 2 * PADDED_C if PRECISION == 'fp16x3' else PADDED_C
    image = tl.program_id(0).to(tl.int64)
    x += image * tokens * C
    keys += image * padded * WIDTH
    norm2 = facts + image * 4 * padded
    r = norm2 + padded
    score = r + padded
    order = score + padded
    some = tl.arange(0, BLOCK_M)

    scale = 1.0
    unit = 1.0
    if PRECISION == 'fp16' or PRECISION == 'fp16x3':
        scale, unit = _scale(_largest(x, tokens, padded, C, PADDED_C, BLOCK_M, BLOCK_C))
    origin = _origin(x, tokens, C, PADDED_C, BLOCK_C)
    for first in range(0, padded, BLOCK_M):
        token = first + some
        _prepare_rows(
            x, origin, scale, keys, norm2, token, tokens, C, PADDED_C, WIDTH, PRECISION, BLOCK_C
        )

    tl.debug_barrier()
    for first in range(0, padded, BLOCK_M):
        if NEIGHBOURS == 0:  # the token itself is the only neighbour
            density = tl.where(first + some < tokens, 0.0, float('-inf'))
        else:
            density = _density_of_rows(
                keys,
                norm2,
                unit,
                first,
                tokens,
                padded,
                C=C,
                WIDTH=WIDTH,
                NEIGHBOURS=NEIGHBOURS,
                PRECISION=PRECISION,
                BLOCK_M=BLOCK_M,
                BLOCK_N=BLOCK_N,
                BLOCK_C=BLOCK_C,
            )
        tl.store(r + first + some, density)

    tl.debug_barrier()
    for first in range(0, padded, BLOCK_M):
        row = first + some
        own_r = tl.load(r + row)
        queries = _load_rows(keys, row, WIDTH, BLOCK_C)
        best = tl.full((BLOCK_M, BLOCK_N), float('inf'), tl.float32)
        for start in range(0, padded, BLOCK_N):
            j = start + tl.arange(0, BLOCK_N)
            columns = _load_rows(keys, j, WIDTH, BLOCK_C)
            d2 = _partial_distance2(queries, columns, tl.load(norm2 + j), PRECISION)
            denser = _before(tl.load(r + j), j, own_r, row)
            best = tl.minimum(best, tl.where(denser, d2, float('inf')))
        delta2 = _distance2(tl.min(best, 1), tl.load(norm2 + row), unit, C)
        result = tl.log(delta2) / 2 + tl.where(row < tokens, own_r, 0)
        tl.store(score + row, tl.where(row < tokens, result, float('-inf')))

    tl.debug_barrier()
    for first in range(0, padded, BLOCK_M):
        row = first + some
        own = _sortable(tl.load(score + row))
        rank = tl.zeros((BLOCK_M,), tl.int32)
        for start in range(0, padded, BLOCK_N):
            j = start + tl.arange(0, BLOCK_N)
            rank += tl.sum(_before(_sortable(tl.load(score + j)), j, own, row).to(tl.int32), 1)
        tl.store(order + rank, row.to(tl.float32))

    tl.debug_barrier()
    labels += image * tokens
    for first in range(0, padded, BLOCK_M):
        _assign_rows(
            keys,
            norm2,
            order,
            labels,
            images.to(tl.int64) * tokens,
            first + some,
            counts,
            tokens,
            WIDTH,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_C,
        )


@triton.jit
def _largest(
    x,
    tokens,
    padded,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The largest magnitude in an image."""
    largest = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, padded, BLOCK_M):
        token = first + tl.arange(0, BLOCK_M)
        for c in tl.static_range(0, PADDED_C, BLOCK_C):
            channel = c + tl.arange(0, BLOCK_C)
            inside = (token < tokens)[:, None] & (channel < C)[None, :]
            tile = tl.load(x + token[:, None] * C + channel[None, :], mask=inside, other=0)
            largest = tl.maximum(largest, tl.abs(tile.to(tl.float32)))
    return tl.max(tl.max(largest, 1), 0)


@triton.jit
def _before(value, index, own_value, own_index):
    """Whether columns come before rows by descending values; of equal ones the lower index."""
    equal = value[None, :] == own_value[:, None]
    return (value[None, :] > own_value[:, None]) | (equal & (index[None, :] < own_index[:, None]))


@triton.jit
def _sortable(value):
    """Integers in the order of float32, also where it is not a number: every rank occurs once."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
