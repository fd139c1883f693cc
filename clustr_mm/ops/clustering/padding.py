"""Clustering a batch of sequences of several lengths, each as if it were alone.

Sequences of one length are clustered together, without their padding: so padding is no neighbour,
no centre and no member, and a sequence's clusters do not depend on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clustr_mm.ops.clustering.dpc_knn import check_tokens, dpc_knn


@dataclass(frozen=True)
class Padding:
    """What is padding in a batch of sequences, and among their clusters.

    Attributes:
        mask: (B, N) bool, True at tokens and False at padding.
        present: For each scale, (B, M) bool, True at the clusters that the sequence has. A
            sequence without a token has one cluster, which is empty.
    """

    mask: Tensor
    present: tuple[Tensor, ...]


def padded_dpc_knn(
    x: Tensor,
    mask: Tensor,
    num_clusters: Callable[[int], tuple[int, ...]],
    k: int = 5,
    backend: str | None = None,
) -> tuple[tuple[Tensor, ...], tuple[int, ...], Padding]:
    """DPC-KNN of sequences of several lengths.

    Args:
        x: Tokens, (B, N, C). What stands at padding does not matter.
        mask: (B, N) bool, True at tokens and False at padding, wherever that is.
        num_clusters: From a sequence's number of tokens, at least 1, to its cluster counts.
        k: Neighbours of the density estimate.
        backend: As for ``dpc_knn``.

    Returns:
        For each scale the cluster of every token, (B, N) int64, M at padding; for each scale the
        number of clusters M of the sequence that has the most; and what is padding.

    Raises:
        ValueError: If the tokens are none, or the mask is not bool or does not fit them.
    """
    check_tokens(x)
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(
            f'mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; tokens of shape '
            f'{tuple(x.shape)} need {tuple(x.shape[:2])}, torch.bool, True at tokens'
        )
    lengths = mask.sum(1)  # (B,)
    of_length = {n: num_clusters(max(1, n)) for n in lengths.unique().tolist()}
    most = tuple(max(counts) for counts in zip(*of_length.values(), strict=True))
    labels = tuple(torch.full_like(mask, m, dtype=torch.int64) for m in most)
    present = tuple(mask.new_zeros(len(mask), m) for m in most)
    for length, counts in of_length.items():
        alike = lengths == length  # (B,)
        for scale, count in enumerate(counts):
            present[scale][alike, :count] = True
        if length == 0:
            continue
        here = mask & alike[:, None]  # (B, N)
        tokens = x[here].view(-1, length, x.shape[-1])
        for label, found in zip(labels, dpc_knn(tokens, counts, k, backend), strict=True):
            label[here] = found.flatten()
    return labels, most, Padding(mask, present)
