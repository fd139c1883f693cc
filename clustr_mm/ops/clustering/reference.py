"""DPC-KNN clustering of tokens: the definition, as text.

Symbols, used in every file of this folder:

    B   images of a batch             C   channels of a token
    N   tokens of an image            k   neighbours for the density, the token itself included
    M   clusters, M <= N              K   neighbours that a fast form keeps, K >= k

    d2  (B, N, N)  squared Euclidean distance of two tokens, divided by C
    r   (B, N)     log-density: minus the mean of a token's k smallest d2 (its own 0 among them)
    delta2 (B, N)  d2 to the nearest denser token; +inf for the densest
    score  (B, N)  log(delta * density) = log(delta2) / 2 + r; the centres are the highest

Density peaks: Rodriguez and Laio, "Clustering by fast search and find of density peaks", Science
344 (2014). Their k-nearest-neighbour form on tokens: Zeng et al., "Not All Tokens Are Equal"
(TCFormer), CVPR 2022. The two-scale use: Xie et al., ClusTR, arXiv 2208.13138, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def pairwise_distance2(x: Tensor) -> Tensor:
    """Squared distances between all tokens, by differences, divided by the number of channels.

    Args:
        x: Tokens, (B, N, C).

    Returns:
        d2, (B, N, N); the diagonal is exactly 0.
    """
    rows = [(x - token[:, None]).square().sum(-1) for token in x.unbind(1)]  # N times (B, N)
    return torch.stack(rows, dim=1) / x.shape[-1]


def log_density(nearest: Tensor) -> Tensor:
    """Logarithm of a token's local density.

    Args:
        nearest: The k smallest d2 of each token, its own 0 first, ascending, (B, N, k).

    Returns:
        r, (B, N).
    """
    # Added one after the other, so that equal neighbourhoods give equal sums in every backend.
    return -reduce(torch.add, nearest.unbind(-1)) / nearest.shape[-1]


def density_order(r: Tensor) -> Tensor:
    """Tokens from the densest to the least dense; of equal ones the lower index is denser.

    Args:
        r: Log-density, (B, N).

    Returns:
        Token indices, (B, N) int64.
    """
    return r.sort(dim=-1, descending=True, stable=True).indices


def inverse_permutation(order: Tensor) -> Tensor:
    """Position of every token in an order of tokens.

    Args:
        order: Token indices, (B, N) int64, each row a permutation.

    Returns:
        Positions, (B, N) int64: ``result[b, order[b, i]] == i``.
    """
    positions = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, positions)


def centre_order(delta2: Tensor, r: Tensor) -> Tensor:
    """Tokens from the best centre to the worst; of equal scores the lower index is first.

    The score is compared as a logarithm: exp(r) underflows, and inf * 0 is no number.

    Args:
        delta2: d2 to the nearest denser token, (B, N), +inf for the densest.
        r: Log-density, (B, N).

    Returns:
        Token indices, (B, N) int64: the first M of them are the M centres.
    """
    score = delta2.log() / 2 + r
    return score.sort(dim=-1, descending=True, stable=True).indices


def dpc_knn_reference(x: Tensor, num_clusters: Sequence[int], k: int) -> Tensor:
    """DPC-KNN as it is defined: O(N^2) memory, for reading and for checking the other backends.

    Args:
        x: Tokens, (B, N, C), float32 or float64.
        num_clusters: Cluster counts, each from 1 to N.
        k: Neighbours of the density estimate, from 1 to N.

    Returns:
        For each of S counts the cluster of every token, (S, B, N) int64: the rank of its centre.
    """
    d2 = pairwise_distance2(x)  # (B, N, N)
    r = log_density(d2.topk(k, dim=-1, largest=False, sorted=True).values)  # (B, N)

    position = inverse_permutation(density_order(r))  # (B, N)
    denser = position[:, None, :] < position[:, :, None]  # (B, N, N): is column denser than row?
    delta2 = d2.masked_fill(~denser, torch.inf).amin(-1)  # (B, N)

    order = centre_order(delta2, r)  # (B, N)
    assignments = []
    for count in num_clusters:
        centres = order[:, :count]  # (B, M)
        index = centres[:, None, :].expand(-1, x.shape[1], -1)  # (B, N, M)
        labels = d2.gather(-1, index).min(-1).indices  # (B, N); the lowest rank on ties
        assignments.append(keep_own_centre(labels, centres))
    return torch.stack(assignments)


def keep_own_centre(labels: Tensor, centres: Tensor) -> Tensor:
    """Makes every centre a member of its own cluster, also where centres coincide.

    Args:
        labels: Cluster of every token, (B, N) int64; changed in place.
        centres: Token index of every centre, (B, M) int64, in rank order.

    Returns:
        ``labels``.
    """
    ranks = torch.arange(centres.shape[-1], device=centres.device).expand_as(centres)
    return labels.scatter_(-1, centres, ranks)
