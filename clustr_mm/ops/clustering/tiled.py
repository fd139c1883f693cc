"""DPC-KNN in tiles of the distance matrix: exact, O(N) memory, any device.

The symbols and the definition are in ``reference.py``. What makes it cheap:

* d2(i, j) = (|x_i|^2 + |x_j|^2 - 2 x_i . x_j) / C: a matrix product. |x_i|^2 is the same along a
  row, so rows are searched without it and it is added to what was found.
* One pass over the matrix keeps the K nearest neighbours of every token. The first k of them give
  the density. If one of the K is denser, the first such is the nearest denser token; the few
  tokens where none is (the *open* ones) are searched again, among denser tokens only.
* The distances of the K are taken anew by differences: of nearly equal tokens a product leaves
  little but rounding.
* Every scale's centres are a prefix of one order, so all scales share one pass over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from clustr_mm.ops.clustering.reference import (
    centre_order,
    density_order,
    inverse_permutation,
    keep_own_centre,
    log_density,
)

# Neighbours kept beside the token itself. More leave fewer tokens open but cost more to select:
# with 7 under 4 % of the tokens of real feature maps stay open.
_NEIGHBOURS = 7
# Columns that share one minimum in the first level of the selection, and the length of a row from
# which two levels beat one.
_GROUP = 16
_TWO_LEVELS_FROM = 1500
# Distances in one tile. On a CPU a tile should stay in the caches (2^21 float32 are 8 MB); on a
# GPU it should fill the device.
_TILE_CPU = 2**21
_TILE_GPU = 2**26
# Longest stretch of columns in one tile: keeps tiles tall enough for an efficient matrix product.
_TILE_COLUMNS = 2**14


def dpc_knn_tiled(x: Tensor, num_clusters: Sequence[int], k: int) -> Tensor:
    """DPC-KNN with the results of the definition, in tiles.

    Args:
        x: Tokens, (B, N, C), float32 or float64.
        num_clusters: Cluster counts, each from 1 to N.
        k: Neighbours of the density estimate, from 1 to N.

    Returns:
        For each of S counts the cluster of every token, (S, B, N) int64: the rank of its centre.
    """
    tokens = _Tokens(x)
    neighbour_d2, neighbours = nearest_neighbours(tokens, max(k - 1, _NEIGHBOURS))  # (B, N, K)
    neighbour_d2, neighbours = by_differences(x, neighbour_d2, neighbours)
    itself = torch.zeros_like(tokens.norm2)[..., None]
    r = log_density(torch.cat([itself, neighbour_d2[..., : k - 1]], dim=-1))  # (B, N)
    delta2 = nearest_denser(tokens, density_order(r), neighbour_d2, neighbours)  # (B, N)
    return torch.stack(nearest_centres(tokens, centre_order(delta2, r), num_clusters))


class _Tokens:
    """Tokens in the form that makes squared distances one matrix product.

    The origin moves to a token near the mean of its image: distances stay, but norms shrink and
    with them the cancellation in the product form. A token rather than the mean itself, because
    differences of tokens on a grid (equal tokens among them) are exact: ties remain ties.

    Attributes:
        keys: (x, |x|^2), (B, N, C + 1).
        queries: (-2 x, 1), (B, N, C + 1).
        norm2: |x|^2, (B, N).
        channels: C.
    """

    def __init__(self, x: Tensor) -> None:
        some = x[:, :: max(1, x.shape[1] // 64)]  # a sample is near enough
        offset = (some - some.mean(1, keepdim=True)).square().sum(-1)
        origin = offset.argmin(1)[:, None, None].expand(-1, 1, x.shape[-1])  # (B, 1, C)
        x = x - some.gather(1, origin)
        norm2 = (x * x).sum(-1, keepdim=True)
        self.keys = torch.cat([x, norm2], dim=-1)
        self.queries = torch.cat([-2 * x, torch.ones_like(norm2)], dim=-1)
        self.norm2 = norm2.squeeze(-1)
        self.channels = x.shape[-1]
        self.shape = x.shape[:2]


class _Tiles:
    """Tiles of a (B, I, J) matrix of distances, computed into one reused buffer."""

    def __init__(self, batch: int, rows: int, columns: int, like: Tensor) -> None:
        size = _TILE_CPU if like.device.type == 'cpu' else _TILE_GPU
        self.batch, self.rows = batch, rows
        self.images = max(1, min(batch, size // max(1, rows * columns)))
        self.height = rows if rows * columns <= size else max(1, size // columns)
        self.buffer = like.new_empty(self.images * self.height * columns)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Slices of images and of their rows: whole images, or a part of one image's rows."""
        for b in range(0, self.batch, self.images):
            for i in range(0, self.rows, self.height):
                yield slice(b, b + self.images), slice(i, min(i + self.height, self.rows))

    def partial_distance2(self, queries: Tensor, keys: Tensor) -> Tensor:
        """|x_j|^2 - 2 x_i . x_j, the part of the squared distance that differs along a row.

        Args:
            queries: (b, i, C + 1), ``_Tokens.queries`` of the rows.
            keys: (b, j, C + 1), ``_Tokens.keys`` of the columns.

        Returns:
            (b, i, j); valid until the next call.
        """
        shape = (*queries.shape[:2], keys.shape[1])
        out = self.buffer[: shape[0] * shape[1] * shape[2]].view(shape)
        if shape[0] > 1:
            return torch.bmm(queries, keys.transpose(1, 2), out=out)
        torch.mm(queries[0], keys[0].T, out=out[0])  # bmm of one matrix uses one thread on a CPU
        return out


def _rows_of(tokens: Tensor, index: Tensor) -> Tensor:
    """Picks tokens (B, N, C) by index (B, M): (B, M, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The smallest entries of each row, ascending, with their columns.

    Long rows in two levels: of all groups of columns, the ``count`` with the smallest minima hold
    the ``count`` smallest entries. One pass over the row, where ``topk`` alone makes several.

    Args:
        values: (B, I, J).
        count: At most J.

    Returns:
        Values and int64 column indices, (B, I, count).
    """
    width = values.shape[-1]
    groups = width // _GROUP
    if width < _TWO_LEVELS_FROM or groups < count:
        return values.topk(count, dim=-1, largest=False, sorted=True)
    # Group g holds the columns g, g + groups, g + 2 groups, ...: a minimum over whole vectors.
    grouped = values[..., : groups * _GROUP].unflatten(-1, (_GROUP, groups))  # (B, I, 16, G)
    best = grouped.amin(-2).topk(count, dim=-1, largest=False, sorted=False).indices
    best = best[..., None, :].expand(-1, -1, _GROUP, -1)  # (B, I, 16, count)
    member = torch.arange(_GROUP, device=values.device)[:, None] * groups
    candidates = grouped.gather(-1, best).flatten(-2)
    columns = (best + member).flatten(-2)
    if groups * _GROUP < width:  # the columns that fill no group
        rest = torch.arange(groups * _GROUP, width, device=values.device)
        candidates = torch.cat([candidates, values[..., groups * _GROUP :]], dim=-1)
        columns = torch.cat([columns, rest.expand(*columns.shape[:-1], -1)], dim=-1)
    found, index = candidates.topk(count, dim=-1, largest=False, sorted=True)
    return found, columns.gather(-1, index)


def nearest_neighbours(tokens: _Tokens, count: int) -> tuple[Tensor, Tensor]:
    """The nearest other tokens of every token.

    Args:
        tokens: B images of N tokens.
        count: Neighbours wanted; at most N - 1 are returned.

    Returns:
        d2, ascending, and int64 token indices, (B, N, min(count, N - 1)).
    """
    batch, total = tokens.shape
    count = min(count, total - 1)
    d2 = tokens.keys.new_empty(batch, total, count)
    index = torch.empty(batch, total, count, dtype=torch.int64, device=d2.device)
    tiles = _Tiles(batch, total, min(total, _TILE_COLUMNS), tokens.keys)
    for images, rows in tiles:
        found: list[tuple[Tensor, Tensor]] = []
        for j in range(0, total, _TILE_COLUMNS):
            columns = slice(j, min(j + _TILE_COLUMNS, total))
            tile = tiles.partial_distance2(
                tokens.queries[images, rows], tokens.keys[images, columns]
            )
            # The token itself is no neighbour here: its distance is 0 whatever rounding says.
            first = max(rows.start, columns.start)
            own = tile[:, first - rows.start :, first - columns.start :]
            own.diagonal(dim1=1, dim2=2).fill_(torch.inf)
            values, where = _smallest(tile, min(count, tile.shape[-1]))
            found.append((values, where + j))
        values, where = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
        if len(found) > 1:
            values, best = values.topk(count, dim=-1, largest=False, sorted=True)
            where = where.gather(-1, best)
        d2[images, rows] = values
        index[images, rows] = where
    return d2.add_(tokens.norm2[..., None]).clamp_(min=0).div_(tokens.channels), index


def by_differences(x: Tensor, d2: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the distances of neighbours anew, as the definition does, and puts them in order.

    The product form leaves of nearly equal tokens' distance little but rounding, and breaks the tie
    of two tokens that are each other's nearest, which would order their densities.

    Args:
        x: Tokens, (B, N, C).
        d2: Of each token's neighbours, ascending, (B, N, K).
        index: Their token indices, (B, N, K).

    Returns:
        d2 and index, ascending.
    """
    batch, total, count = index.shape
    flat = x.flatten(0, 1)  # (B N, C)
    first = torch.arange(batch, device=x.device)[:, None, None] * total
    pairs = (index + first).flatten()  # (B N K,)
    anew = torch.empty_like(d2).flatten()
    size = _TILE_CPU if x.device.type == 'cpu' else _TILE_GPU
    rows = max(1, size // max(1, count * x.shape[-1]))
    for i in range(0, batch * total, rows):
        own = flat[i : i + rows, None]  # (i, 1, C)
        part = slice(i * count, (i + rows) * count)
        other = flat[pairs[part]].view(len(own), count, x.shape[-1])
        anew[part] = (other - own).square_().sum(-1).flatten()
    anew, order = (anew.view_as(d2) / x.shape[-1]).sort(-1)
    return anew, index.gather(-1, order)


def nearest_denser(
    tokens: _Tokens, order: Tensor, neighbour_d2: Tensor, neighbours: Tensor
) -> Tensor:
    """Squared distance of every token to the nearest denser one.

    Args:
        tokens: B images of N tokens.
        order: Token indices from the densest to the least dense, (B, N).
        neighbour_d2: d2 of the nearest neighbours, ascending, (B, N, K).
        neighbours: Their token indices, (B, N, K).

    Returns:
        delta2, (B, N), +inf for the densest token.
    """
    batch, total = tokens.shape
    if total == 1:
        return torch.full_like(tokens.norm2, torch.inf)
    position = inverse_permutation(order)  # (B, N)
    neighbour_position = position.gather(1, neighbours.flatten(1)).view_as(neighbours)
    sparser = neighbour_position > position[..., None]
    delta2 = neighbour_d2.masked_fill(sparser, torch.inf).amin(-1)  # (B, N)

    # Open tokens, densest first. Images with fewer of them than the others are filled up with
    # tokens that are not open, which does no harm: their delta2 comes out the same again.
    is_open = delta2.gather(1, order).isinf()  # (B, N) in density order; the densest is always open
    count = int(is_open.sum(1).max())
    if count == 1:
        return delta2
    rows = is_open.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
    keys = _rows_of(tokens.keys, order)  # in density order: the denser ones are a prefix
    queries = _rows_of(tokens.queries, order.gather(1, rows))
    found = torch.empty_like(rows, dtype=keys.dtype)
    tiles = _Tiles(batch, count, total, keys)
    for images, part in tiles:
        position = rows[images, part, None]  # (b, i, 1)
        prefix = max(1, int(position[:, -1].max()))
        tile = tiles.partial_distance2(queries[images, part], keys[images, :prefix])
        tile.masked_fill_(torch.arange(prefix, device=tile.device) >= position, torch.inf)
        found[images, part] = tile.amin(-1)
    index = order.gather(1, rows)
    found.add_(tokens.norm2.gather(1, index)).clamp_(min=0).div_(tokens.channels)
    return delta2.scatter_(1, index, found)


def nearest_centres(tokens: _Tokens, order: Tensor, num_clusters: Sequence[int]) -> list[Tensor]:
    """Assigns every token to its nearest centre, for all scales in one pass over the centres.

    Args:
        tokens: B images of N tokens.
        order: Token indices from the best centre to the worst, (B, N).
        num_clusters: Cluster counts, each from 1 to N.

    Returns:
        For each count the rank of each token's nearest centre, (B, N) int64.
    """
    batch, total = tokens.shape
    labels: dict[int, Tensor] = {}
    if total in num_clusters:  # every token is a centre, and its own
        labels[total] = inverse_permutation(order)
    counts = sorted(set(num_clusters) - {total})
    if counts:
        centres = order[:, : counts[-1]]  # (B, M)
        keys = _rows_of(tokens.keys, centres)
        for count in counts:
            labels[count] = torch.empty_like(order)
        tiles = _Tiles(batch, total, counts[-1], keys)
        for images, rows in tiles:
            tile = tiles.partial_distance2(tokens.queries[images, rows], keys[images])
            best, rank = tile[..., : counts[0]].min(-1)  # (b, i)
            labels[counts[0]][images, rows] = rank
            for previous, count in pairwise(counts):
                value, index = tile[..., previous:count].min(-1)
                # Strictly nearer: on ties the lower rank stays.
                nearer = value < best
                rank = torch.where(nearer, index + previous, rank)
                best = torch.where(nearer, value, best)
                labels[count][images, rows] = rank
        for count in counts:
            keep_own_centre(labels[count], centres[:, :count])
    return [labels[count] for count in num_clusters]
