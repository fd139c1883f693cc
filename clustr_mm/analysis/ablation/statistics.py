"""What clusters look like: their sizes, and how far over the map they reach."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClusterStatistics:
    """The clusters of a map at one scale. All but the number are fractions.

    Attributes:
        clusters: Number of clusters M.
        largest: Tokens in the largest cluster, of all tokens.
        single: Clusters of one token, of all clusters.
        empty: Clusters without a token, of all clusters.
        extent: Root mean square distance of the tokens from the middle of their cluster, as a
            multiple of that from the middle of the map: 1 where place does not matter at all,
            about 1 / sqrt(M) for the cells of a grid, 0 where every token is its own cluster.
    """

    clusters: float
    largest: float
    single: float
    empty: float
    extent: float


def cluster_statistics(
    labels: Tensor | None, num_clusters: int, hw: tuple[int, int]
) -> ClusterStatistics:
    """Describes the clusters of a batch of maps, the mean over the batch.

    Args:
        labels: Cluster of every token, (B, H W) int64; None where every token is its own.
        num_clusters: Number of clusters M.
        hw: Height and width of the map, in tokens.

    Returns:
        The statistics.
    """
    height, width = hw
    tokens = height * width
    if labels is None:
        return ClusterStatistics(num_clusters, 1 / tokens, 1.0, 0.0, 0.0)
    row, column = torch.meshgrid(
        torch.arange(height, device=labels.device),
        torch.arange(width, device=labels.device),
        indexing='ij',
    )
    place = torch.stack([row.flatten(), column.flatten()], -1).double()  # (N, 2)
    of_map = (place - place.mean(0)).square().sum(-1).mean()
    each = []
    for label in labels:  # (N,)
        sizes = label.bincount(minlength=num_clusters)
        middles = place.new_zeros(num_clusters, 2).index_add(0, label, place)
        middles = middles / sizes.clamp(min=1)[:, None]  # (M, 2)
        of_clusters = (place - middles[label]).square().sum(-1).mean()
        each.append(
            ClusterStatistics(
                num_clusters,
                sizes.max().item() / tokens,
                (sizes == 1).double().mean().item(),
                (sizes == 0).double().mean().item(),
                (of_clusters / of_map).sqrt().item() if of_map > 0 else 0.0,
            )
        )
    return mean_statistics(each)


def mean_statistics(each: Iterable[ClusterStatistics]) -> ClusterStatistics:
    """The mean of several maps' statistics, of at least one."""
    columns = zip(*map(astuple, each), strict=True)
    return ClusterStatistics(*(statistics.fmean(column) for column in columns))
