"""Merging tokens into cluster tokens: the differentiable weighted mean of a cluster.

    c_m = sum_{i in m} w_i x_i / (sum_{i in m} w_i + eps),   w = exp(l),   eps = 1e-6

exp(l) overflows in half precision at l = 11 and in float32 at 89, so numerator and denominator are
both divided by exp(max l), the maximum taken over the cluster, and everything is summed in float32:

    c_m = sum e^(l_i - max) x_i / (sum e^(l_i - max) + eps e^(-max))

(Xie et al., arXiv 2208.13138, section 3; the eps is the published network's.) On a GPU the Triton
kernels do the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clustr_mm.ops.autocast import without_autocast
from clustr_mm.ops.clustering.triton import can_run_triton
from clustr_mm.ops.merging.triton import merge_scales_triton, merge_triton

EPS = 1e-6


def merge_tokens(
    x: Tensor, assignment: Tensor | None, num_clusters: int, weight_logits: Tensor
) -> Tensor:
    """Weighted mean of the tokens of every cluster.

    Gradients flow through ``x`` and ``weight_logits``, never through the assignment; on a GPU once,
    not twice. The result is deterministic.

    Args:
        x: Tokens, (B, N, C), any floating dtype.
        assignment: Cluster of every token, (B, N) int64 with values below ``num_clusters``; None
            where every token is a cluster of its own, in the order of the tokens.
        num_clusters: Number of clusters M.
        weight_logits: Logarithms of the tokens' weights, (B, N).

    Returns:
        Cluster tokens, (B, M, C), of x's dtype; a cluster without a token is 0.

    Raises:
        ValueError: If the shapes do not fit each other.
    """
    batch, tokens, channels = x.shape
    if weight_logits.shape != (batch, tokens):
        raise ValueError(
            f'weight_logits has shape {tuple(weight_logits.shape)}; tokens of shape '
            f'{tuple(x.shape)} need ({batch}, {tokens})'
        )
    if assignment is None and num_clusters != tokens:
        raise ValueError(
            f'num_clusters is {num_clusters}, but without an assignment each of the {tokens} '
            'tokens is a cluster of its own; pass an assignment or that number'
        )
    if assignment is not None and assignment.shape != (batch, tokens):
        raise ValueError(
            f'assignment has shape {tuple(assignment.shape)}; tokens of shape {tuple(x.shape)} '
            f'need ({batch}, {tokens})'
        )
    if x.is_cuda and can_run_triton(x) is None:
        return merge_triton(x, assignment, num_clusters, weight_logits)
    if assignment is None:
        return merge_single_tokens(x, weight_logits)
    with without_autocast(x):  # it would round the sums
        precise = torch.promote_types(x.dtype, torch.float32)
        logits = weight_logits.to(precise)
        # Clusters of different images become different rows of one flat array.
        image = torch.arange(batch, device=x.device)[:, None] * num_clusters
        row = (assignment + image).flatten()  # (B N,)
        rows = batch * num_clusters

        with torch.no_grad():  # the value does not depend on the maximum
            largest = logits.new_full((rows,), -torch.inf)
            largest = largest.scatter_reduce(0, row, logits.flatten(), 'amax')
            largest = largest.masked_fill(largest == -torch.inf, 0)  # empty clusters
        weight = (logits.flatten() - largest[row]).exp()  # (B N,)
        weighted = x.to(precise).flatten(0, 1) * weight[:, None]  # (B N, C)
        numerator = _sum_rows(weighted, row, rows)  # (B M, C)
        denominator = _sum_rows(weight, row, rows) + EPS * (-largest).exp()  # (B M,)
        merged = numerator / denominator[:, None]
    return merged.view(batch, num_clusters, channels).to(x.dtype)


def merge_scales(
    x: Tensor,
    assignments: Sequence[Tensor | None],
    num_clusters: Sequence[int],
    token_weight: nn.Linear,
) -> list[Tensor]:
    """Cluster tokens of several scales, weighed by a layer; on a GPU by one operator.

    Args:
        x: Tokens, (B, N, C).
        assignments: For each scale as for ``merge_tokens``.
        num_clusters: For each scale M.
        token_weight: From tokens to the logarithms of their weights, C to 1.

    Returns:
        For each scale cluster tokens, (B, M, C), of x's dtype.
    """
    if x.is_cuda and can_run_triton(x) is None:
        return merge_scales_triton(x, assignments, num_clusters, token_weight)
    logits = token_weight(x).squeeze(-1)  # (B, N)
    pairs = zip(assignments, num_clusters, strict=True)
    return [merge_tokens(x, assignment, count, logits) for assignment, count in pairs]


def merge_single_tokens(x: Tensor, weight_logits: Tensor) -> Tensor:
    """Cluster tokens where every token is a cluster of its own: w x / (w + eps).

    Args:
        x: Tokens, (B, N, C).
        weight_logits: Logarithms of the tokens' weights, (B, N).

    Returns:
        Cluster tokens, (B, N, C), of x's dtype.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    # e^l / (e^l + eps) is the logistic function of l - log(eps).
    share = torch.sigmoid(weight_logits.to(precise) - math.log(EPS))
    return (x * share[..., None]).to(x.dtype)


def _sum_rows(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums values (L,) or (L, C) by row index (L,) into (rows,) or (rows, C), deterministically."""
    total = values.new_zeros(rows, *values.shape[1:])
    if values.is_cuda:
        # index_add adds with atomics there, in any order; index_put sorts first.
        return total.index_put((row,), values, accumulate=True)
    return total.index_add(0, row, values)
