"""Clustering the windows of a map each by itself, with cluster numbers that are global again.

A map of H x W tokens is split evenly into max(1, round(H / w)) x max(1, round(W / w)) windows. Each
gets its share of every scale's clusters. Clustering then costs O(N w^2) instead of O(N^2), and one
window is the whole image as long as the map is smaller than 1.5 w.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from clustr_mm.ops.clustering.dpc_knn import dpc_knn
from clustr_mm.ops.dispatch import is_compiling

# Of a detection image's stage 1 a split is half a megabyte.
_SPLITS_KEPT = 256


@dataclass(frozen=True)
class WindowGroup:
    """Windows with the same numbers of tokens and of clusters.

    Attributes:
        tokens: Index of every window's tokens in the map, (windows, n) int64.
        clusters: For each scale the index of every window's clusters among all clusters of the
            image, (windows, m) int64.
        windows: Number of windows.
        num_tokens: n.
        num_clusters: For each scale m.
    """

    tokens: Tensor
    clusters: tuple[Tensor, ...]
    windows: int
    num_tokens: int
    num_clusters: tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """A map split into windows.

    Attributes:
        groups: The windows, grouped by their numbers of tokens and clusters.
        num_clusters: For each scale the clusters of the whole image. A window has at least one, so
            this can be more than was asked for if the windows are tiny.
        num_tokens: Tokens of the map.
    """

    groups: tuple[WindowGroup, ...]
    num_clusters: tuple[int, ...]
    num_tokens: int


def split_map(
    height: int, width: int, window: int, num_clusters: tuple[int, ...], device: torch.device
) -> Windows:
    """Splits a map evenly into windows and hands each its share of the clusters.

    Args:
        height: Rows of tokens H.
        width: Columns of tokens W.
        window: Side w of a window, in tokens, about.
        num_clusters: Cluster counts of the whole map, one for each scale.
        device: Where the index tensors live.

    Returns:
        The windows. Shares are in proportion to the windows' tokens; remainders go to the first.
    """
    # What a trace makes, or FakeTensorMode, must not be kept: it is no tensor for others. Nor what
    # a CUDA graph's capture makes, whose memory is the graph's.
    if (
        is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(torch.empty(0)) is not Tensor
        or (device.type == 'cuda' and torch.cuda.is_current_stream_capturing())
    ):
        return _split.__wrapped__(height, width, window, num_clusters, device)
    with torch.inference_mode(False):  # else training could not use what inference made
        return _split(height, width, window, num_clusters, device)


@lru_cache(maxsize=_SPLITS_KEPT)
def _split(
    height: int, width: int, window: int, num_clusters: tuple[int, ...], device: torch.device
) -> Windows:
    # Made where it is used: a copy from the host would make the host wait.
    grid = torch.arange(height * width, device=device).view(height, width)
    rows, columns = _sides(height, window), _sides(width, window)
    sizes = [row * column for row in rows for column in columns]
    tokens = [
        part.flatten()
        for stripe in grid.split(rows, dim=0)
        for part in stripe.split(columns, dim=1)
    ]
    shares = [_shares(count, sizes) for count in num_clusters]  # [scale][window]
    ends = [list(accumulate(share)) for share in shares]
    clusters = torch.arange(max(end[-1] for end in ends), device=device)

    alike: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(sizes):
        alike.setdefault((size, *(share[i] for share in shares)), []).append(i)

    def clusters_of(members: list[int], scale: int) -> Tensor:
        if num_clusters[scale] == height * width:  # every token is a cluster, in token order
            return torch.stack([tokens[i] for i in members])
        share, end = shares[scale], ends[scale]
        return torch.stack([clusters[end[i] - share[i] : end[i]] for i in members])

    groups = tuple(
        WindowGroup(
            torch.stack([tokens[i] for i in members]),
            tuple(clusters_of(members, s) for s in range(len(num_clusters))),
            len(members),
            size,
            tuple(counts),
        )
        for (size, *counts), members in alike.items()
    )
    return Windows(groups, tuple(end[-1] for end in ends), height * width)


def _sides(length: int, window: int) -> list[int]:
    """Splits a length evenly into windows of about a length; the first are the longer ones."""
    count = max(1, round(length / window))
    return [length // count + (i < length % count) for i in range(count)]


def _shares(count: int, sizes: list[int]) -> list[int]:
    """Shares a count out over windows of the given sizes: in proportion, at least 1 each."""
    shares = [count * size // sum(sizes) for size in sizes]
    remainder = count - sum(shares)
    return [max(1, share + (i < remainder)) for i, share in enumerate(shares)]


def windowed_dpc_knn(
    x: Tensor, windows: Windows, k: int = 5, backend: str | None = None
) -> tuple[Tensor | None, ...]:
    """DPC-KNN in every window by itself.

    Args:
        x: Tokens of the map, (B, H W, C).
        windows: The map's windows.
        k: Neighbours of the density estimate.
        backend: As for ``dpc_knn``.

    Returns:
        For each scale the cluster of every token, (B, H W) int64, numbered over the whole image;
        None where every token is a cluster of its own, in the order of the tokens.
    """
    batch, tokens, channels = x.shape
    labels = {
        s: torch.empty(batch, tokens, dtype=torch.int64, device=x.device)
        for s, count in enumerate(windows.num_clusters)
        if count < windows.num_tokens
    }
    # Windows of one size are clustered together, though shares of clusters may differ by one.
    by_size: dict[int, list[WindowGroup]] = {}
    for group in windows.groups if labels else ():
        by_size.setdefault(group.num_tokens, []).append(group)
    for size, groups in by_size.items():
        index = torch.cat([group.tokens for group in groups])  # (windows, n)
        counts = sorted({group.num_clusters[s] for group in groups for s in labels})
        found = dpc_knn(x[:, index].reshape(-1, size, channels), counts, k, backend)
        of_count = {
            m: each.view(batch, -1, size).split([group.windows for group in groups], dim=1)
            for m, each in zip(counts, found, strict=True)
        }
        for i, group in enumerate(groups):
            for s, label in labels.items():
                first = group.clusters[s][:, :1]  # (windows, 1)
                label[:, group.tokens] = of_count[group.num_clusters[s]][i] + first
    return tuple(labels.get(s) for s in range(len(windows.num_clusters)))
