"""Other ways to group tokens, behind ``ClusterAttention``'s interface: reference points.

A grouping takes the attention's tokens and cluster counts and returns ``Clusters``. Trained in the
place of the density peaks they tell what is worth finding clusters for.

Symbols: B images, N = H W tokens, C channels, M clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm.models import ClusterAttention, Clusters, ClusTR
from clustr_mm.models.clustr import Stage
from clustr_mm.ops import merge_tokens

Grouping = Callable[[Tensor, tuple[int, ...], tuple[int, int]], Clusters]

# Distances computed at a time: 2^22 float32 are 16 MB.
_TILE = 2**22
# Rounds of k-means. Most of what it gains it gains in the first few.
_KMEANS_ROUNDS = 5


def dense(x: Tensor, num_clusters: tuple[int, ...], hw: tuple[int, int]) -> Clusters:
    """Every token is a cluster of its own at every scale: dense attention, without clustering."""
    tokens = x.shape[1]
    return Clusters((None,) * len(num_clusters), (tokens,) * len(num_clusters))


def grid(x: Tensor, num_clusters: tuple[int, ...], hw: tuple[int, int]) -> Clusters:
    """Cells of a regular grid, as square as the map: pooling by place, as in PVTv2.

    The number of cells is near the asked one, not equal to it.
    """
    height, width = hw
    labels: list[Tensor | None] = []
    counts = []
    for count in num_clusters:
        per_side = math.sqrt(count / (height * width))
        rows, columns = (min(side, max(1, round(side * per_side))) for side in hw)
        row = torch.arange(height, device=x.device) * rows // height
        column = torch.arange(width, device=x.device) * columns // width
        cells = (row[:, None] * columns + column).flatten()  # (N,)
        labels.append(cells.expand(x.shape[0], -1) if rows * columns < len(cells) else None)
        counts.append(rows * columns)
    return Clusters(tuple(labels), tuple(counts))


def random(x: Tensor, num_clusters: tuple[int, ...], hw: tuple[int, int]) -> Clusters:
    """Tokens at random in place of the density peaks; every token goes to its nearest centre.

    The same places for the same number of tokens, so that two runs agree. The coarse centres are
    the first of the fine ones, as with density peaks.
    """
    tokens = x.shape[1]
    places = _random_places(x)
    labels: list[Tensor | None] = []
    for count in num_clusters:
        if count == tokens:
            labels.append(None)
            continue
        chosen = places[:count]
        nearest = _nearest(x, x[:, chosen])
        nearest[:, chosen] = torch.arange(count, device=x.device)
        labels.append(nearest)
    return Clusters(tuple(labels), num_clusters)


def kmeans(x: Tensor, num_clusters: tuple[int, ...], hw: tuple[int, int]) -> Clusters:
    """Lloyd's k-means, each scale by itself, from ``random``'s centres and for a few rounds.

    A centre that loses all its tokens stays where it was, and its cluster may end up empty.
    (Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28, 1982.)
    """
    tokens = x.shape[1]
    places = _random_places(x)
    equal_weights = x.new_zeros(x.shape[:2])
    labels: list[Tensor | None] = []
    for count in num_clusters:
        if count == tokens:
            labels.append(None)
            continue
        centres = x[:, places[:count]]  # (B, M, C)
        nearest = _nearest(x, centres)
        for _ in range(_KMEANS_ROUNDS):
            sizes = nearest.new_zeros(centres.shape[:2])
            sizes = sizes.scatter_add(1, nearest, torch.ones_like(nearest))  # (B, M)
            means = merge_tokens(x, nearest, count, equal_weights)
            centres = torch.where(sizes[..., None] > 0, means, centres)
            nearest = _nearest(x, centres)
        labels.append(nearest)
    return Clusters(tuple(labels), num_clusters)


def balanced(x: Tensor, num_clusters: tuple[int, ...], hw: tuple[int, int]) -> Clusters:
    """Clusters of one size, within one token: by likeness to the mean of all tokens, in order.

    The tokens are sorted by the cosine of their angle to the mean token, and the sorted sequence is
    cut into M pieces. (Li et al., "Semantic Equitable Clustering", arXiv 2405.13337; there each
    cluster is attended to by its own tokens, here all are by all.)
    """
    batch, tokens, _ = x.shape
    alike = F.cosine_similarity(x, x.mean(1, keepdim=True), dim=-1)  # (B, N)
    order = alike.argsort(dim=1, stable=True, descending=True)
    place = torch.arange(tokens, device=x.device)
    labels: list[Tensor | None] = []
    for count in num_clusters:
        if count == tokens:
            labels.append(None)
            continue
        pieces = (place * count // tokens).expand(batch, -1)
        labels.append(torch.empty_like(order).scatter_(1, order, pieces))
    return Clusters(tuple(labels), num_clusters)


def _random_places(x: Tensor) -> Tensor:
    """All token indices in an order that depends on their number N alone, (N,) int64."""
    tokens = x.shape[1]
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens)).to(x.device)


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The nearest of the centres (B, M, C) for every token (B, N, C): (B, N) int64."""
    half_norm2 = centres.square().sum(-1)[:, None] / 2  # (B, 1, M)
    rows = max(1, _TILE // (x.shape[0] * centres.shape[1]))
    # argmin |x - c|^2 = argmin |c|^2 / 2 - x . c
    return torch.cat(
        [
            torch.baddbmm(half_norm2, part, centres.transpose(1, 2), alpha=-1).argmin(-1)
            for part in x.split(rows, dim=1)
        ],
        dim=1,
    )


GROUPINGS: dict[str, Grouping] = {
    'balanced': balanced,
    'dense': dense,
    'grid': grid,
    'kmeans': kmeans,
    'random': random,
}


class RegroupedAttention(nn.Module):
    """A cluster attention whose clusters another grouping finds.

    Args:
        attention: The attention; its parameters are used as they are.
        grouping: Name of the grouping in ``GROUPINGS``.
    """

    def __init__(self, attention: ClusterAttention, grouping: str) -> None:
        super().__init__()
        self.attention = attention
        self.grouping = grouping

    @torch.no_grad()
    def cluster(self, x: Tensor, hw: tuple[int, int]) -> Clusters:
        """Groups tokens (B, N, C) of a map of H x W."""
        return GROUPINGS[self.grouping](x, self.attention.num_clusters(x.shape[1]), hw)

    def forward(self, x: Tensor, hw: tuple[int, int], clusters: Clusters) -> Tensor:
        """Attends from all tokens to the clusters, (B, N, C) to (B, N, C)."""
        return self.attention(x, hw, clusters)


def regroup(model: ClusTR, grouping: str) -> None:
    """Makes every cluster attention of a backbone use another grouping.

    Args:
        model: The backbone, changed in place.
        grouping: Name of the grouping in ``GROUPINGS``.
    """
    for stage in model.stages:
        for block in cast(Stage, stage).blocks:
            if isinstance(block.attn, ClusterAttention):
                block.attn = RegroupedAttention(block.attn, grouping)
