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
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm.ops.clustering import (
    Padding,
    Windows,
    dpc_knn,
    dpc_knn_traceable,
    padded_dpc_knn,
    split_map,
    windowed_dpc_knn,
)
from clustr_mm.ops.dispatch import integer, known
from clustr_mm.ops.merging import merge_by_product, merge_single_tokens, merge_tokens

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
        if mask is None:
            return self.proj(attend(self.q(x), self.kv(x), self.num_heads))
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
        scales = tuple(integer(scale, 'a scale') for scale in scales)
        if not scales or scales[0] != 1 or sorted(set(scales)) != list(scales):
            raise ValueError(f'scales is {scales}; use ascending multiples from 1, such as (1, 4)')
        reduction, k = integer(reduction, 'reduction'), integer(k, 'k')
        if cluster_window is not None:
            cluster_window = integer(cluster_window, 'cluster_window')
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
            ValueError: If windows are asked for without a map, with one of another size or with a
                mask, or the mask is not bool or does not fit.
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
        tokens = integer(x.shape[1], 'N')
        counts = self.num_clusters(tokens)
        if self.cluster_window is not None:
            if hw is None:
                raise ValueError('cluster_window needs a map; pass hw=(height, width)')
            height, width = (integer(side, 'a side of hw') for side in hw)
            if height * width != tokens:
                raise ValueError(
                    f'hw is ({height}, {width}), a map of {height * width} tokens, and x has '
                    f'{tokens}; pass the height and width of its map'
                )
            windows = split_map(height, width, self.cluster_window, counts, x.device)
            if len(windows.groups) > 1 or windows.groups[0].windows > 1:
                labels = windowed_dpc_knn(x, windows, self.k, self.backend)
                return Clusters(labels, windows.num_clusters, windows)
        if self.backend == 'traceable':  # a graph for any size does not know where M = N
            return Clusters(tuple(dpc_knn_traceable(x, counts, self.k).unbind(0)), counts)
        # Where every token is a cluster, attention does not see in which order. A compiled graph
        # for any size cannot know, and clusters them.
        single = [known(count == tokens) for count in counts]
        asked = [count for count, each in zip(counts, single, strict=True) if not each]
        found = iter(dpc_knn(x, asked, self.k, self.backend) if asked else ())
        return Clusters(tuple(None if each else next(found) for each in single), counts)

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
        q = self.q(x)  # (B, N, C)
        weight = self.token_weight(x).squeeze(-1)  # its logarithm, (B, N)
        merged = [self._merge(x, clusters, scale, weight) for scale in range(len(self.kvs))]
        kvs = [kv(each) for kv, each in zip(self.kvs, merged, strict=True)]  # each (B, M, 2 C)
        total: Tensor | None = None  # (B, N, C)
        for scale, kv_of_scale in enumerate(kvs):
            if scale > 0 and self.fine_scope == 'window' and clusters.windows is not None:
                out = self._attend_in_windows(q, kv_of_scale, clusters.windows, scale)
            else:
                present = None if padding is None else padding.present[scale]  # (B, M)
                out = attend(q, kv_of_scale, self.num_heads, present)
            total = out if total is None else total + out
        out = self.proj(total)
        return out if padding is None else out.masked_fill(~padding.mask[..., None], 0)

    def _merge(self, x: Tensor, clusters: Clusters, scale: int, weight: Tensor) -> Tensor:
        """The cluster tokens of a scale, (B, M, C)."""
        labels, count = clusters.labels[scale], clusters.num_clusters[scale]
        if labels is None:
            return merge_single_tokens(x, weight)
        merge = merge_by_product if self.backend == 'traceable' else merge_tokens
        return merge(x, labels, count, weight)

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


def attend(q: Tensor, kv: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head scaled dot-product attention.

    Args:
        q: Queries, (B, N, C).
        kv: Keys and values of M tokens, (B, M, 2 C).
        num_heads: Number of heads; divides C.
        mask: (B, M) bool, True at the tokens to attend to, at least one; None for all.

    Returns:
        (B, N, C).
    """
    if mask is not None:
        mask = mask[:, None, None]  # (B, 1, 1, M)
    q = q.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, N, 64)
    # In this order the gradients at k and v are joined as kv lies in memory.
    k, v = kv.unflatten(-1, (2, num_heads, -1)).unbind(2)  # (B, M, heads, 64)
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, M, 64)
    out = F.scaled_dot_product_attention(q, k, v, mask)  # (B, heads, N, 64)
    return out.transpose(1, 2).flatten(2)


def _check_heads(dim: int, num_heads: int) -> None:
    num_heads = integer(num_heads, 'num_heads')
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f'num_heads is {num_heads}; use a divisor of the {dim} channels')
