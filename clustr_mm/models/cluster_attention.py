"""Multi-scale cluster attention: every token asks, clusters of tokens answer.

Xie et al., "ClusTR: Exploring Efficient Self-attention via Clustering for Vision Transformers",
arXiv 2208.13138, section 3. Tokens in, tokens out: any sequence will do, a map is needed for
windows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clustr_mm.models.attend import attend, attend_to_scales
from clustr_mm.ops.autocast import autocast_dtype
from clustr_mm.ops.clustering import (
    Padding,
    Windows,
    dpc_knn,
    padded_dpc_knn,
    split_map,
    windowed_dpc_knn,
)
from clustr_mm.ops.merging.merge import merge_scales

FineScope = Literal['global', 'window']


@dataclass(frozen=True)
class Clusters:
    """The clustering of a batch of token sequences at several scales.

    Attributes:
        labels: For each scale the cluster of every token, (B, N) int64; None where every token is
            a cluster of its own, in the order of the tokens. M at padding.
        num_clusters: For each scale the number of clusters M, of the sequence with the most.
        windows: The windows in which the clustering was done; None for the whole sequence.
        padding: What is padding; None where nothing is.
    """

    labels: tuple[Tensor | None, ...]
    num_clusters: tuple[int, ...]
    windows: Windows | None = None
    padding: Padding | None = None


class SelfAttention(nn.Module):
    """Ordinary multi-head self-attention, with one projection for keys and values.

    Args:
        dim: Channels C.
        num_heads: Number of heads; divides ``dim``.
        qkv_bias: Whether the query, key and value projections have a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends from all tokens to all tokens.

        Args:
            x: Tokens, (B, N, C).
            mask: (B, N) bool, True at tokens and False at padding, which comes out as 0; None
                where nothing is padding.

        Returns:
            (B, N, C).
        """
        x = _rounded(x)
        if mask is None:
            return self.proj(attend_to_scales(self.q(x), [self.kv(x)], self.num_heads))
        x = x.masked_fill(~mask[..., None], 0)  # nothing of padding, not even inf, comes through
        some = mask | ~mask.any(1, keepdim=True)  # a sequence of padding alone attends to that
        out = self.proj(attend(self.q(x), self.kv(x), self.num_heads, some))
        return out.masked_fill(~mask[..., None], 0)


class ClusterAttention(nn.Module):
    """Attention whose keys and values are clusters of the tokens, found by content.

    For every scale, the tokens' clusters (DPC-KNN, no gradient) are merged into cluster tokens by
    a learned weight, projected to keys and values, and attended to by all tokens and heads. The
    scales' results are added and projected.

    Sequences of several lengths take a mask: each then has the clusters, as many and the same,
    that it would have alone, whatever stands at its padding and beside it in the batch.

    Args:
        dim: Channels C.
        num_heads: Number of heads; divides ``dim``.
        reduction: Side r of the square of tokens that the coarsest cluster stands for: the first
            scale has max(1, N // r^2) clusters.
        scales: Cluster counts as multiples of the first scale's, ascending from 1, at most N.
        k: Neighbours of the density estimate, the token itself included.
        qkv_bias: Whether the query, key and value projections have a bias.
        cluster_window: Side of the windows, in tokens, that are clustered each by itself; None
            for the whole sequence.
        fine_scope: ``'window'`` lets every scale but the first be attended to from its own window
            only (needs ``cluster_window``); ``'global'`` from everywhere.
        backend: Backend of the clustering, see ``clustr_mm.ops.clustering.dpc_knn``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int = 8,
        scales: Sequence[int] = (1, 4),
        k: int = 5,
        qkv_bias: bool = True,
        cluster_window: int | None = None,
        fine_scope: FineScope = 'global',
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        scales = tuple(scales)
        if not scales or scales[0] != 1 or sorted(set(scales)) != list(scales):
            raise ValueError(f'scales is {scales}; use ascending multiples from 1, such as (1, 4)')
        if reduction < 1:
            raise ValueError(f'reduction is {reduction}; use at least 1')
        if k < 1:
            raise ValueError(f'k is {k}; use at least 1')
        if cluster_window is not None and cluster_window < 1:
            raise ValueError(f'cluster_window is {cluster_window}; use None or at least 1')
        if fine_scope not in ('global', 'window'):
            raise ValueError(f"fine_scope is {fine_scope!r}; use 'global' or 'window'")
        if fine_scope == 'window' and cluster_window is None:
            raise ValueError(
                "fine_scope is 'window' without windows; set cluster_window, say to 56"
            )
        self.num_heads = num_heads
        self.reduction = reduction
        self.scales = scales
        self.k = k
        self.cluster_window = cluster_window
        self.fine_scope = fine_scope
        self.backend = backend
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.token_weight = nn.Linear(dim, 1)  # logarithm of a token's weight in its cluster
        self.kvs = nn.ModuleList(nn.Linear(dim, 2 * dim, bias=qkv_bias) for _ in scales)
        self.proj = nn.Linear(dim, dim)

    def extra_repr(self) -> str:
        """The settings that no submodule shows."""
        return (
            f'num_heads={self.num_heads}, reduction={self.reduction}, scales={self.scales}, '
            f'k={self.k}, cluster_window={self.cluster_window}, fine_scope={self.fine_scope!r}'
        )

    def num_clusters(self, tokens: int) -> tuple[int, ...]:
        """Cluster counts of a sequence of N tokens, one for each scale."""
        coarse = max(1, tokens // self.reduction**2)
        return tuple(min(tokens, scale * coarse) for scale in self.scales)

    @torch.no_grad()
    def cluster(
        self, x: Tensor, hw: tuple[int, int] | None = None, mask: Tensor | None = None
    ) -> Clusters:
        """Finds the clusters of the tokens.

        Args:
            x: Tokens, (B, N, C).
            hw: Height and width of the map of tokens, H W = N; needed for windows.
            mask: (B, N) bool, True at tokens and False at padding; None where nothing is padding.

        Returns:
            The clusters, to be handed to ``forward``, also of another layer.

        Raises:
            ValueError: If windows are asked for without a map or with a mask, or the mask is not
                bool or does not fit.
        """
        if mask is not None:
            if self.cluster_window is not None:
                raise ValueError(
                    'a mask is for sequences, and those have no windows; use cluster_window=None'
                )
            padded_labels, most, padding = padded_dpc_knn(
                x, mask, self.num_clusters, self.k, self.backend
            )
            return Clusters(padded_labels, most, padding=padding)
        tokens = x.shape[1]
        counts = self.num_clusters(tokens)
        if self.cluster_window is not None:
            if hw is None:
                raise ValueError('cluster_window needs a map; pass hw=(height, width)')
            windows = split_map(*hw, self.cluster_window, counts, x.device)
            if len(windows.groups) > 1 or len(windows.groups[0].tokens) > 1:
                labels = windowed_dpc_knn(x, windows, self.k, self.backend)
                return Clusters(labels, windows.num_clusters, windows)
        # Where every token is a cluster, attention does not see in which order.
        asked = [count for count in counts if count < tokens]
        found = iter(dpc_knn(x, asked, self.k, self.backend) if asked else ())
        return Clusters(tuple(next(found) if m < tokens else None for m in counts), counts)

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int] | None = None,
        clusters: Clusters | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attends from all tokens to the clusters of all scales.

        Args:
            x: Tokens, (B, N, C).
            hw: Height and width of the map of tokens; needed for windows.
            clusters: Clusters to use, with the mask that they were found with; None to find x's
                own.
            mask: (B, N) bool, True at tokens and False at padding; None where nothing is padding.

        Returns:
            (B, N, C), 0 at padding.

        Raises:
            ValueError: If there are both clusters and a mask; else as for ``cluster``.
        """
        if clusters is None:
            clusters = self.cluster(x, hw, mask)
        elif mask is not None:
            raise ValueError('clusters know their mask; pass clusters or mask, not both')
        padding = clusters.padding
        if padding is not None:
            # Nothing of it comes through, not even inf, and no gradient goes there.
            x = x.masked_fill(~padding.mask[..., None], 0)
        x = _rounded(x)
        q = self.q(x)  # (B, N, C)
        counts = clusters.num_clusters
        if padding is None:
            merged = self.merge(x, clusters.labels, counts)
        else:  # padding is one cluster more, which nobody sees
            merged = self.merge(x, clusters.labels, [count + 1 for count in counts])
            merged = [each[:, :-1] for each in merged]
        kvs = [kv(of_scale) for kv, of_scale in zip(self.kvs, merged, strict=True)]  # (B, M, 2 C)
        if self.fine_scope == 'window' and clusters.windows is not None:
            total = attend(q, kvs[0], self.num_heads)
            for scale, kv in enumerate(kvs[1:], 1):
                total = total + self._attend_in_windows(q, kv, clusters.windows, scale)
        else:
            present = None if padding is None else padding.present  # for each scale (B, M)
            total = attend_to_scales(q, kvs, self.num_heads, present)
        out = self.proj(total)
        return out if padding is None else out.masked_fill(~padding.mask[..., None], 0)

    def merge(
        self, x: Tensor, labels: Sequence[Tensor | None], num_clusters: Sequence[int]
    ) -> list[Tensor]:
        """Merges the tokens of every cluster of every scale, as ``merge_scales``."""
        return merge_scales(x, labels, num_clusters, self.token_weight)

    def _attend_in_windows(self, q: Tensor, kv: Tensor, windows: Windows, scale: int) -> Tensor:
        """Attends from every token to the clusters of its own window, (B, N, C)."""
        batch, tokens, channels = q.shape
        outs, places = [], []
        for group in windows.groups:
            q_group = q[:, group.tokens].flatten(0, 1)  # (B windows, n, C)
            kv_group = kv[:, group.clusters[scale]].flatten(0, 1)  # (B windows, m, 2 C)
            out = attend(q_group, kv_group, self.num_heads)
            outs.append(out.view(batch, -1, channels))
            places.append(group.tokens.flatten())
        # Back from window order to map order.
        return torch.cat(outs, dim=1)[:, torch.cat(places).argsort()]


def _rounded(x: Tensor) -> Tensor:
    """What autocast would make of tokens, once and not in every layer that takes them."""
    return x.to(autocast_dtype(x) or x.dtype)


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f'num_heads is {num_heads}; use a divisor of the {dim} channels')
