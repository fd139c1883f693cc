"""Triton kernels of the clustering: one kernel an idea.

``triton.py`` launches them and is the file to read first. Symbols as in ``reference.py``;
B programs' worth of images lie in one grid axis, image after image. N and C are padded to whole
tiles once, by ``prepare_kernel`` (N' tokens, C' channels), so that no later loop needs a mask:
a padding token has the norm +inf and is therefore nobody's neighbour.

Squared distances are taken in the product form, |x_j|^2 - 2 x_i . x_j + |x_i|^2. The last term is
the same along a row and is added to what was found. Nothing of size N x N is ever stored.

Names, the same in all kernels:

    tokens, padded, C, PADDED_C   N, N', C, C'
    WIDTH        values of a key: C', or 2 C' for the precision ``'fp16x3'``; else it is ``'fp16'``
    BLOCK_M      rows of a program; divides N'
    BLOCK_N      columns of a tile that streams past them; divides BLOCK_M
    BLOCK_C      channels that are loaded at once; divides C'

The selections run element by element of the tile: column j of every tile belongs to class j, each
class keeps its own best, and the classes meet once, after the last tile. So the loops over the
columns have no branch, no reduction and no exchange between threads.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

SAMPLE = tl.constexpr(64)  # tokens among which the origin is chosen


@triton.jit
def image_and_block(blocks):
    """Splits the program's number into image (int64: offsets pass 2^31) and block of the image."""
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks


@triton.jit
def _load_rows(keys, rows, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Loads keys by index as a tuple of (rows, BLOCK_C) tiles."""
    tiles = ()
    for c in tl.static_range(0, WIDTH, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        tiles = tiles + (tl.load(keys + rows[:, None] * WIDTH + channel[None, :]),)
    return tiles


@triton.jit
def _partial_distance2(queries, columns, column_norm2, PRECISION: tl.constexpr):
    """|x_j|^2 - 2 x_i . x_j of a tile, (rows, columns) float32."""
    PARTS: tl.constexpr = len(queries) // 2 if PRECISION == 'fp16x3' else len(queries)
    products = tl.dot(queries[0], columns[0].T)
    for c in tl.static_range(1, PARTS):
        products = tl.dot(queries[c], columns[c].T, products)
    for c in tl.static_range(PARTS, len(queries)):  # remainders; their own product is too small
        products = tl.dot(queries[c - PARTS], columns[c].T, products)
        products = tl.dot(queries[c], columns[c - PARTS].T, products)
    return column_norm2[None, :] + products * -2.0  # one fused operation


@triton.jit
def _distance2(partial, row_norm2, unit, C):
    """d2 of what a row has found, in the units of x."""
    return tl.div_rn(tl.maximum(partial + row_norm2, 0) * unit * unit, C * 1.0)


@triton.jit
def _origin(x, tokens, C: tl.constexpr, PADDED_C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The one of SAMPLE tokens of an image that is nearest to their mean."""
    step = tl.maximum(tokens // SAMPLE, 1)
    sample = tl.arange(0, SAMPLE) * step
    sampled = sample < tokens
    count = tl.sum(sampled.to(tl.float32))
    offset2 = tl.zeros((SAMPLE,), tl.float32)
    for c in tl.static_range(0, PADDED_C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        inside = sampled[:, None] & (channel < C)[None, :]
        some = tl.load(x + sample[:, None] * C + channel[None, :], mask=inside, other=0)
        some = some.to(tl.float32)
        offset = tl.where(inside, some - (tl.sum(some, 0) / count)[None, :], 0)
        offset2 += tl.sum(offset * offset, 1)
    nearest = tl.argmin(tl.where(sampled, offset2, float('inf')), 0)
    return tl.minimum(nearest * step, tokens - 1)  # also where NaN left no minimum


@triton.jit
def _scale(largest):
    """The power of two that fits values up to ``largest`` into float16, and its inverse."""
    # The fields of a float32's exponent: 127 stands for 2^0.
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    up = tl.minimum(tl.maximum(127 + 127 + 13 - exponent, 1), 253)
    return (up << 23).to(tl.float32, bitcast=True), ((254 - up) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=['tokens'])
def prepare_kernel(
    x,
    largest,
    keys,
    norm2,
    unit,
    tokens,
    padded,
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K0: moves the origin, scales, rounds to float16, takes norms, pads.

    The origin moves to the one of 64 sampled tokens that is nearest to their mean: norms shrink
    and with them the cancellation in the product form. A token rather than the mean, because
    differences of tokens on a grid (equal tokens among them) are exact: ties remain ties.

    float16 has TF32's 10 bits but less range. A power of two, exact, brings the image's largest
    possible difference of two tokens, 2 max |x|, between 2^14 and 2^15: nothing overflows, and
    what falls below float16's normal numbers is under 2^-28 of the largest. With ``'fp16x3'`` a
    second float16 holds what the first leaves, 22 bits in all.

    Moves 4 B N C + (2 or 4) B N' C' bytes. About 5 operations a channel.

    Arrays:
        x: (B, N, C), float32, float16 or bfloat16.
        largest: max |x| of every image, (B,).
        keys: Written: the rounded tokens, (B, N', C'); (B, N', 2 C') for ``'fp16x3'``, the
            remainders in the second half.
        norm2: Written: |keys|^2, (B, N') float32; +inf for padding.
        unit: Written: length of the keys' unit in x's, (B,) float32.
    """
    WIDTH: tl.constexpr = 2 * PADDED_C if PRECISION == 'fp16x3' else PADDED_C
    image, block = image_and_block(padded // BLOCK_N)
    x += image * tokens * C
    keys += image * padded * WIDTH

    origin = _origin(x, tokens, C, PADDED_C, BLOCK_C)
    scale, scale_back = _scale(tl.load(largest + image).to(tl.float32))
    if block == 0:
        tl.store(unit + image, scale_back)
    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    norm2 += image * padded
    total = tl.zeros((BLOCK_N,), tl.float32)
    for c in tl.static_range(0, PADDED_C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        inside = (token < tokens)[:, None] & (channel < C)[None, :]
        start = tl.load(x + origin * C + channel, mask=channel < C, other=0)
        tile = tl.load(x + token[:, None] * C + channel[None, :], mask=inside, other=0)
        tile = (tile.to(tl.float32) - start.to(tl.float32)[None, :]) * scale
        tile = tl.where(inside, tile, 0)
        place = token[:, None] * WIDTH + channel[None, :]
        rounded = tile.to(keys.dtype.element_ty)
        tl.store(keys + place, rounded)
        value = rounded.to(tl.float32)
        if PRECISION == 'fp16x3':
            remainder = (tile - value).to(tl.float16)
            tl.store(keys + place + PADDED_C, remainder)
            value += remainder.to(tl.float32)
        total += tl.sum(value * value, 1)
    tl.store(norm2 + token, tl.where(token < tokens, total, float('inf')))


@triton.jit(do_not_specialize=['tokens'])
def density_kernel(
    keys,
    norm2,
    unit,
    r,
    tokens,
    padded,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K1: distances of a block of rows to all columns, the k - 1 smallest of a row, the density.

    Values alone, no indices: the density needs no more, and ``score_kernel`` asks for the nearest
    denser token anew. A class keeps its k - 1 smallest in ascending order, so the row's are among
    the classes'. An element is inserted by m_t <- min(m_t, max(m_{t-1}, v)), for all t at once:
    2 (k - 1) - 1 minima or maxima, where with indices it would be some 5 operations for each of
    the K neighbours that are kept. The token itself lies in the first tiles, which go round from
    the diagonal, so that only they need a mask.

    Operations: 2 B N^2 C for the products; per pair of tokens one multiply-add and 2 k - 3 minima
    and maxima. Moves (N' / BLOCK_M) N' C' values of keys per image through the L2 cache; from
    memory B N' C' values and 8 B N' bytes.

    Arrays:
        keys: (B, N', WIDTH).
        norm2: (B, N').
        unit: (B,).
        r: Written: log-density, (B, N') float32; -inf for padding.
    """
    image, block = image_and_block(padded // BLOCK_M)
    keys += image * padded * WIDTH
    norm2 += image * padded
    own_unit = tl.load(unit + image)
    first = block * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_N)
    queries = _load_rows(keys, row, WIDTH, BLOCK_C)

    smallest = ()
    for _ in tl.static_range(NEIGHBOURS):
        smallest = smallest + (tl.full((BLOCK_M, BLOCK_N), float('inf'), tl.float32),)
    for start in range(first, first + BLOCK_M, BLOCK_N):
        j = start + column
        columns = _load_rows(keys, j, WIDTH, BLOCK_C)
        d2 = _partial_distance2(queries, columns, tl.load(norm2 + j), PRECISION)
        d2 = tl.where(row[:, None] == j[None, :], float('inf'), d2)
        smallest = _insert(smallest, d2)
    for step in range(first + BLOCK_M, first + padded, BLOCK_N):
        j = tl.where(step < padded, step, step - padded) + column
        columns = _load_rows(keys, j, WIDTH, BLOCK_C)
        d2 = _partial_distance2(queries, columns, tl.load(norm2 + j), PRECISION)
        smallest = _insert(smallest, d2)

    row_norm2 = tl.load(norm2 + row)
    total = tl.zeros((BLOCK_M,), tl.float32)  # begins with the token's own 0, as log_density does
    for _ in range(NEIGHBOURS):
        nearest, where = tl.min(smallest[0], 1, return_indices=True)
        smallest = _remove_first(smallest, where[:, None] == column[None, :])
        total += _distance2(nearest, row_norm2, own_unit, C)
    density = -tl.div_rn(total, tl.full((BLOCK_M,), NEIGHBOURS + 1, tl.float32))
    tl.store(r + image * padded + row, tl.where(row < tokens, density, float('-inf')))


@triton.jit
def _insert(smallest, value):
    """Inserts a tile into ascending lists, element by element; the largest entries drop out."""
    result = (tl.minimum(smallest[0], value),)
    for t in tl.static_range(1, len(smallest)):
        result = result + (tl.minimum(smallest[t], tl.maximum(smallest[t - 1], value)),)
    return result


@triton.jit
def _remove_first(smallest, here):
    """Removes the first entry of the ascending lists where ``here`` holds."""
    result = ()
    for t in tl.static_range(1, len(smallest)):
        result = result + (tl.where(here, smallest[t], smallest[t - 1]),)
    return result + (tl.where(here, float('inf'), smallest[len(smallest) - 1]),)


@triton.jit(do_not_specialize=['tokens'])
def score_kernel(
    keys,
    norm2,
    unit,
    r,
    order,
    score,
    tokens,
    padded,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K2: the nearest denser token of every token, and the score.

    In density order the denser tokens are a prefix: row p asks the columns before p, half of the
    matrix in all, and only the tiles on the diagonal need a mask. The minimum of a value alone is
    so cheap (one operation a pair) that closed and open rows need not be told apart: K1 would
    spend more on remembering which neighbours it found. The longest rows start first.

    Operations: B N^2 C for the products; for half the pairs of tokens one multiply-add and one
    minimum. Half of K1's bytes.

    Arrays:
        keys: (B, N', WIDTH), the tokens from the densest to the least dense, padding last.
        norm2: (B, N'), in the same order.
        unit: (B,).
        r: Log-density, (B, N'), in the same order.
        order: Index of each of these tokens, (B, N') int64.
        score: Written, by that index: log(delta2) / 2 + r, (B, N') float32; -inf for padding.
    """
    blocks = padded // BLOCK_M
    image, block = image_and_block(blocks)
    block = blocks - 1 - block
    keys += image * padded * WIDTH
    norm2 += image * padded
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_N)
    queries = _load_rows(keys, position, WIDTH, BLOCK_C)

    best = tl.full((BLOCK_M, BLOCK_N), float('inf'), tl.float32)
    for start in range(0, block * BLOCK_M, BLOCK_N):
        j = start + column
        columns = _load_rows(keys, j, WIDTH, BLOCK_C)
        best = tl.minimum(best, _partial_distance2(queries, columns, tl.load(norm2 + j), PRECISION))
    for start in range(block * BLOCK_M, (block + 1) * BLOCK_M, BLOCK_N):
        j = start + column
        columns = _load_rows(keys, j, WIDTH, BLOCK_C)
        d2 = _partial_distance2(queries, columns, tl.load(norm2 + j), PRECISION)
        best = tl.minimum(best, tl.where(j[None, :] < position[:, None], d2, float('inf')))

    token = tl.load(order + image * padded + position)
    own_norm2 = tl.load(norm2 + position)
    delta2 = _distance2(tl.min(best, 1), own_norm2, tl.load(unit + image), C)
    own_r = tl.load(r + image * padded + position, mask=token < tokens, other=0)
    result = tl.where(token < tokens, tl.log(delta2) / 2 + own_r, float('-inf'))
    tl.store(score + image * padded + token, result)


@triton.jit(do_not_specialize=['images', 'tokens'])
def assign_kernel(
    keys,
    norm2,
    order,
    labels,
    counts,
    images,
    tokens,
    padded,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """K3: the nearest centre of every token, for all scales in one stream over the centres.

    Every scale's centres are a prefix of one order: the best after M1 centres is remembered, and
    the stream goes on to M2. A column that is the row itself is nearer than any other: a centre
    belongs to itself, also where centres coincide.

    Operations: 2 B N M C for the products, M the largest count; per pair one multiply-add, and
    five comparisons and selections. Moves B (N' / BLOCK_M) M C' values of keys through the L2
    cache and 8 B N bytes of labels a scale.

    Arrays:
        keys: (B, N', WIDTH).
        norm2: (B, N').
        order: Token indices from the best centre to the worst, (B, N').
        labels: Written: for each count the rank of the nearest centre, (S, B, N) int64; the
            lowest rank on ties.
        counts: The S cluster counts, ascending, all of them below N; a tuple.
    """
    image, block = image_and_block(padded // BLOCK_M)
    keys += image * padded * WIDTH
    norm2 += image * padded
    order += image * padded
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    labels += image * tokens
    stride = images.to(tl.int64) * tokens  # from scale to scale
    queries = _load_rows(keys, row, WIDTH, BLOCK_C)

    best = tl.full((BLOCK_M, BLOCK_N), float('inf'), tl.float32)
    rank = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    first = 0
    for scale in tl.static_range(len(counts)):
        count = counts[scale]
        for start in range(first, count, BLOCK_N):
            column = start + tl.arange(0, BLOCK_N)
            j = tl.load(order + column, mask=column < count, other=0).to(tl.int32)
            column_norm2 = tl.load(norm2 + j, mask=column < count, other=float('inf'))
            columns = _load_rows(keys, j, WIDTH, BLOCK_C)
            d2 = _partial_distance2(queries, columns, column_norm2, PRECISION)
            own = tl.where(column < count, j, -1)
            d2 = tl.where(row[:, None] == own[None, :], float('-inf'), d2)
            nearer = d2 < best  # strictly: on ties the lower rank stays
            best = tl.where(nearer, d2, best)
            rank = tl.where(nearer, column[None, :], rank)
        least = tl.min(best, 1)
        winner = tl.min(tl.where(best == least[:, None], rank, count - 1), 1)
        tl.store(labels + scale * stride + row, winner, mask=row < tokens)
        first = count
