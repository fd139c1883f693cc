"""Merging tokens into cluster tokens: the differentiable weighted mean of a cluster.

    c_m = sum_{i in m} w_i x_i / (sum_{i in m} w_i + eps),   w = exp(l),   eps = 1e-6

exp(l) overflows in half precision at l = 11 and in float32 at 89, so numerator and denominator are
both divided by exp(max l), the maximum taken over the cluster, and everything is summed in float32:

    c_m = sum e^(l_i - max) x_i / total_m,   total_m = sum e^(l_i - max) + eps e^(-max)

With p_i = e^(l_i - max) / total_m, the share of token i in its cluster, and g the gradient at c_m,
the gradient at x_i is p_i g, and that at l_i is p_i g . (x_i - c_m).

(Xie et al., arXiv 2208.13138, section 3; the eps is the published network's.)

    B   images of a batch     N   tokens of an image     C   channels     M   clusters
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clustr_mm.ops.dispatch import Operator, integer, say_fallback, without_autocast

EPS = 1e-6


def merge_scales(
    x: Tensor,
    assignments: Sequence[Tensor | None],
    num_clusters: Sequence[int],
    weight_logits: Tensor,
) -> list[Tensor]:
    """Cluster tokens of several scales, for each as ``merge_tokens``."""
    pairs = zip(assignments, num_clusters, strict=True)
    return [merge_tokens(x, assignment, count, weight_logits) for assignment, count in pairs]


def merge_tokens(
    x: Tensor, assignment: Tensor | None, num_clusters: int, weight_logits: Tensor
) -> Tensor:
    """Weighted mean of the tokens of every cluster.

    Gradients flow through ``x`` and ``weight_logits``, once and not twice, and never through the
    assignment. The result is deterministic.

    Args:
        x: Tokens, (B, N, C), any floating dtype.
        assignment: Cluster of every token, (B, N) int64; None where every token is a cluster of its
            own, in the order of the tokens. A token whose number is not from 0 to M - 1 is in no
            cluster.
        num_clusters: Number of clusters M.
        weight_logits: Logarithms of the tokens' weights, (B, N).

    Returns:
        Cluster tokens, (B, M, C), of x's dtype; a cluster without a token is 0.

    Raises:
        ValueError: If the shapes do not fit each other.
    """
    batch, tokens = (integer(size, 'a size') for size in x.shape[:2])
    num_clusters = integer(num_clusters, 'num_clusters')
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
    if assignment is None:
        return merge_single_tokens(x, weight_logits)
    if assignment.shape != (batch, tokens):
        raise ValueError(
            f'assignment has shape {tuple(assignment.shape)}; tokens of shape {tuple(x.shape)} '
            f'need ({batch}, {tokens})'
        )
    return MERGE(x, assignment, num_clusters, weight_logits)[0].to(x.dtype)


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


def merge_by_product(
    x: Tensor, assignment: Tensor, num_clusters: int, weight_logits: Tensor
) -> Tensor:
    """``merge_tokens`` as a matrix product, for graphs that run outside of Python.

    What happens to sums into equal indices is another runtime's own affair. O(N M) memory.

    Args:
        x: Tokens, (B, N, C).
        assignment: Cluster of every token, (B, N) int64; every cluster has a token.
        num_clusters: Number of clusters M; may be a symbol of a graph.
        weight_logits: Logarithms of the tokens' weights, (B, N).

    Returns:
        Cluster tokens, (B, M, C).
    """
    cluster = torch.arange(num_clusters, device=x.device)
    member = assignment[:, None, :] == cluster[:, None]  # (B, M, N)
    logits = weight_logits[:, None, :].masked_fill(~member, -torch.inf)  # (B, M, N)
    largest = logits.amax(-1, keepdim=True)  # (B, M, 1)
    weight = (logits - largest).exp()  # (B, M, N), 0 outside of the cluster
    total = weight.sum(-1, keepdim=True) + EPS * (-largest).exp()
    return weight @ x / total


# ------------------------------------------------------------------------------------ the operator


def _merge(
    x: Tensor, assignment: Tensor, num_clusters: int, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: c (B, M, C), max (B, M) and total (B, M), all float32 or wider."""
    if x.is_cuda:
        from clustr_mm.ops.merging.triton import can_run_merge, merge_triton

        reason = can_run_merge(x)
        if reason is None:
            return merge_triton(x, assignment, num_clusters, logits)
        say_fallback('merge', reason)
    return merge_plain(x, assignment, num_clusters, logits)


def _merge_backward(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    logits: Tensor,
    merged: Tensor,
    largest: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor]:
    """The operator of the gradients at x and at the logits."""
    if x.is_cuda:
        from clustr_mm.ops.merging.triton import can_run_merge, merge_backward_triton

        if can_run_merge(x) is None:
            return merge_backward_triton(grad, x, assignment, logits, merged, largest, total)
    return merge_backward_plain(grad, x, assignment, logits, merged, largest, total)


def merge_plain(
    x: Tensor, assignment: Tensor, num_clusters: int, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: c (B, M, C), max (B, M) and total (B, M), all float32 or wider."""
    batch, _, channels = x.shape
    with without_autocast(x):  # it would round the sums
        precise = torch.promote_types(x.dtype, torch.float32)
        logits = logits.to(precise).flatten()
        row = _rows(assignment, num_clusters).flatten()  # (B N,)
        rows = batch * num_clusters + 1  # the last is for tokens without a cluster
        largest = logits.new_full((rows,), -torch.inf).scatter_reduce(0, row, logits, 'amax')
        largest = largest.masked_fill(largest == -torch.inf, 0)  # empty clusters
        weight = (logits - largest.take(row)).exp()  # (B N,)
        weighted = x.to(precise).flatten(0, 1) * weight[:, None]  # (B N, C)
        total = _sum_rows(weight, row, rows) + EPS * (-largest).exp()  # (B M + 1,)
        merged = _sum_rows(weighted, row, rows) / total[:, None]  # (B M + 1, C)
    of_images = (batch, num_clusters)
    return (
        merged[:-1].view(*of_images, channels),
        largest[:-1].view(of_images),
        total[:-1].view(of_images),
    )


def merge_backward_plain(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    logits: Tensor,
    merged: Tensor,
    largest: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients at x (B, N, C) and at the logits (B, N), from that at c (B, M, C)."""
    with without_autocast(x):
        clusters = merged.shape[1]
        inside = (assignment >= 0) & (assignment < clusters)  # (B, N)
        row = _rows(assignment.clamp(0, clusters - 1), clusters).flatten()  # (B N,)
        share = (logits.to(merged.dtype).flatten() - largest.take(row)).exp()
        share = (share / total.take(row)).view_as(logits)
        share = share.masked_fill(~inside, 0)  # p, (B, N)
        of_cluster = (grad * merged).sum(-1).take(row).view_as(share)  # g . c, (B, N)
        grad_x = (
            grad.flatten(0, 1).index_select(0, row).view_as(x).mul_(share[..., None])
        )  # p g, (B, N, C)
        grad_logits = (grad_x * x).sum(-1) - share * of_cluster
        return grad_x.to(x.dtype), grad_logits.to(logits.dtype)


def _rows(assignment: Tensor, num_clusters: int) -> Tensor:
    """Each token's row among the clusters of all images, (B, N); B M for those without one."""
    batch = assignment.shape[0]
    image = torch.arange(batch, device=assignment.device)[:, None] * num_clusters
    inside = (assignment >= 0) & (assignment < num_clusters)
    return torch.where(inside, assignment + image, batch * num_clusters)


def _sum_rows(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums values (L,) or (L, C) by row index (L,) into (rows,) or (rows, C), deterministically."""
    total = values.new_zeros(rows, *values.shape[1:])
    if values.is_cuda:
        # index_add adds with atomics there, in any order; index_put sorts first.
        return total.index_put((row,), values, accumulate=True)
    return total.index_add(0, row, values)


def _merge_fake(
    x: Tensor, assignment: Tensor, num_clusters: int, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, channels = x.shape
    precise = torch.promote_types(x.dtype, torch.float32)
    facts = x.new_empty((batch, num_clusters), dtype=precise)
    return (
        x.new_empty((batch, num_clusters, channels), dtype=precise),
        facts,
        torch.empty_like(facts),
    )


def _merge_backward_fake(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    logits: Tensor,
    merged: Tensor,
    largest: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), logits.new_empty(logits.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, assignment, _, logits = inputs
    ctx.save_for_backward(x, assignment, logits, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:  # nobody uses the cluster tokens
        return None, None, None, None
    grad_x, grad_logits = MERGE_BACKWARD(grad, *ctx.saved_tensors)
    return grad_x, None, None, grad_logits


MERGE = Operator(
    'merge(Tensor x, Tensor assignment, SymInt num_clusters, Tensor logits)'
    ' -> (Tensor, Tensor, Tensor)',
    _merge,
    _merge_fake,
    _gradients,
    _remember,
)
MERGE_BACKWARD = Operator(
    'merge_backward(Tensor grad, Tensor x, Tensor assignment, Tensor logits, Tensor merged, '
    'Tensor largest, Tensor total) -> (Tensor, Tensor)',
    _merge_backward,
    _merge_backward_fake,
)
