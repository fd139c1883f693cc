"""The network in a form that other runtimes can run: one graph, standard operations, any size.

Two things differ from training's form. Clustering has no control flow that depends on data
(``clustr_mm/ops/clustering/traceable.py``). Merging is a product with the matrix of memberships: what
happens to sums into equal indices is a runtime's own affair.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from clustr_mm.models.cluster_attention import ClusterAttention, Clusters
from clustr_mm.models.clustr import Block, ClusTR, Stage
from clustr_mm.ops.clustering.traceable import dpc_knn_traceable
from clustr_mm.ops.merging.merge import EPS, merge_single_tokens

Module = TypeVar('Module', bound=nn.Module)


class ExportableAttention(ClusterAttention):
    """A cluster attention in exportable form, with the same results.

    Args:
        attention: The attention; its parameters are used as they are.
        dynamic: Whether the graph must serve any number of tokens. Then every scale is clustered,
            also where each token is a cluster of its own, and there can be no windows.

    Raises:
        ValueError: If ``dynamic`` is asked of an attention with windows.
    """

    def __init__(self, attention: ClusterAttention, dynamic: bool) -> None:
        if dynamic and attention.cluster_window is not None:
            raise ValueError(
                f'cluster_window is {attention.cluster_window}: windows depend on the size, which '
                'a graph for any size does not know; export for one size, or set it to None'
            )
        super().__init__(
            attention.q.in_features,
            attention.num_heads,
            attention.reduction,
            attention.scales,
            attention.k,
            cluster_window=attention.cluster_window,
            fine_scope=attention.fine_scope,
            backend='traceable',
        )
        for name, module in attention.named_children():
            setattr(self, name, module)
        self.dynamic = dynamic

    @torch.no_grad()
    def cluster(
        self, x: Tensor, hw: tuple[int, int] | None = None, mask: Tensor | None = None
    ) -> Clusters:
        """Finds the clusters of tokens (B, N, C) of a map of H x W."""
        if not self.dynamic:
            return super().cluster(x, hw, mask)
        counts = self.num_clusters(x.shape[1])
        return Clusters(tuple(dpc_knn_traceable(x, counts, self.k)), counts)

    def merge(
        self, x: Tensor, labels: Sequence[Tensor | None], num_clusters: Sequence[int]
    ) -> list[Tensor]:
        """Merges the tokens of every cluster of every scale by standard operations."""
        logits = self.token_weight(x).squeeze(-1)  # (B, N)
        return [
            merge_single_tokens(x, logits)
            if assignment is None
            else merge_by_product(x, assignment, count, logits)
            for assignment, count in zip(labels, num_clusters, strict=True)
        ]


def merge_by_product(x: Tensor, labels: Tensor, num_clusters: int, logits: Tensor) -> Tensor:
    """Weighted mean of the tokens of every cluster, as ``merge_tokens``, by a matrix product.

    Args:
        x: Tokens, (B, N, C).
        labels: Cluster of every token, (B, N) int64; every cluster has a token.
        num_clusters: Number of clusters M; may be a symbol of a graph.
        logits: Logarithms of the tokens' weights, (B, N).

    Returns:
        Cluster tokens, (B, M, C).
    """
    cluster = torch.arange(num_clusters, device=x.device)
    member = labels[:, None, :] == cluster[:, None]  # (B, M, N)
    l = logits[:, None, :].masked_fill(~member, -torch.inf)  # noqa: E741 - (B, M, N)
    largest = l.amax(-1, keepdim=True)  # (B, M, 1)
    weight = (l - largest).exp()  # (B, M, N), 0 outside of the cluster
    total = weight.sum(-1, keepdim=True) + EPS * (-largest).exp()
    return weight @ x / total


def make_exportable(model: Module, dynamic: bool = True) -> Module:
    """Copies a model with every cluster attention in exportable form, for evaluation.

    Args:
        model: A model with ClusTR in it, or a ClusTR. ``crop_padding`` is turned off: a graph does
            not look for padding, so its images must all fill their batch.
        dynamic: See ``ExportableAttention``.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: If ``dynamic`` is asked of a backbone with windows.
    """
    model = copy.deepcopy(model).eval()
    for backbone in [module for module in model.modules() if isinstance(module, ClusTR)]:
        backbone.crop_padding = False
        for stage in backbone.stages:
            for each in cast(Stage, stage).blocks:
                block = cast(Block, each)
                if isinstance(block.attn, ClusterAttention):
                    block.attn = ExportableAttention(block.attn, dynamic)
    return model
