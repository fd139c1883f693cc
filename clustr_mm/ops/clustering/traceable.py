"""DPC-KNN without control flow that depends on data: for graphs that run outside of Python.

The steps are the definition's (``reference.py``), in operations that ONNX has, so the N x N matrix
of distances is in memory as a whole: 630 MB for one image of 112 x 112 tokens, 448 x 448 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clustr_mm.ops.clustering.reference import (
    centre_order,
    density_order,
    inverse_permutation,
    keep_own_centre,
    log_density,
)

# Tokens whose squared distance is less than this share of their squared norms, in units of the
# dtype's precision, are taken for equal: it is what rounding leaves of a difference of 0.
_SAME = 84


def dpc_knn_traceable(x: Tensor, num_clusters: Sequence[int], k: int) -> Tensor:
    """DPC-KNN with the results of the definition, up to rounding, as one graph for any size.

    Args:
        x: Tokens, (B, N, C), float32 or float64. B and N may be symbols of a graph.
        num_clusters: Cluster counts, each from 1 to N; may be symbols.
        k: Neighbours of the density estimate, from 1 to N.

    Returns:
        For each of S counts the cluster of every token, (S, B, N) int64: the rank of its centre.
    """
    tokens = x.shape[1]
    # Smaller norms, less cancellation. A token near the mean, not the mean: ties stay exact.
    offset = (x - x.mean(1, keepdim=True)).square().sum(-1)  # (B, N)
    x = x - x.gather(1, offset.argmin(1)[:, None, None].expand(-1, 1, x.shape[-1]))
    norm2 = x.square().sum(-1)  # (B, N)
    sums = norm2[:, :, None] + norm2[:, None, :]  # (B, N, N)
    d2 = sums - 2 * (x @ x.transpose(1, 2))
    d2 = d2.masked_fill(d2 < _SAME * torch.finfo(d2.dtype).eps * sums, 0)
    index = torch.arange(tokens, device=x.device)
    itself = index[:, None] == index  # (N, N)
    d2 = (d2 / x.shape[-1]).masked_fill(itself, 0)  # (B, N, N)
    r = log_density(d2.topk(k, dim=-1, largest=False, sorted=True).values)  # (B, N)

    position = inverse_permutation(density_order(r))  # (B, N)
    denser = position[:, None, :] < position[:, :, None]  # (B, N, N)
    delta2 = d2.masked_fill(~denser, torch.inf).amin(-1)  # (B, N)

    order = centre_order(delta2, r)  # (B, N)
    labels = []
    for count in num_clusters:
        # Not a slice: torch.export would note whether it is as long as the whole, and insist on it.
        centres = order.index_select(1, torch.arange(count, device=x.device))  # (B, M)
        rows = centres[..., None].expand(-1, -1, tokens)
        nearest = d2.gather(1, rows).argmin(1)  # (B, N); the lowest rank on ties
        labels.append(keep_own_centre(nearest, centres))
    return torch.stack(labels)
