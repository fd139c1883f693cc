"""``dpc_knn``: one function in front of all backends, and the one place that picks among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from clustr_mm.ops.autocast import autocast_dtype, without_autocast
from clustr_mm.ops.clustering.native import can_run_native, dpc_knn_native
from clustr_mm.ops.clustering.reference import dpc_knn_reference
from clustr_mm.ops.clustering.tiled import dpc_knn_tiled
from clustr_mm.ops.clustering.traceable import dpc_knn_traceable
from clustr_mm.ops.clustering.triton import (
    can_run_triton,
    dpc_knn_triton,
    warn_without_kernels,
)

BACKENDS: dict[str, Callable[[Tensor, Sequence[int], int], list[Tensor]]] = {
    'reference': dpc_knn_reference,
    'tiled': dpc_knn_tiled,
    'traceable': dpc_knn_traceable,
    'native': dpc_knn_native,
    'triton': dpc_knn_triton,
}


@overload
def dpc_knn(x: Tensor, num_clusters: int, k: int = 5, backend: str | None = None) -> Tensor: ...
@overload
def dpc_knn(
    x: Tensor, num_clusters: Sequence[int], k: int = 5, backend: str | None = None
) -> tuple[Tensor, ...]: ...
def dpc_knn(
    x: Tensor, num_clusters: int | Sequence[int], k: int = 5, backend: str | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Clusters the tokens of every image by density peaks (DPC-KNN), without gradient or noise.

    The definition is in ``reference.py``. Half precision is computed in float32; ``'triton'`` alone
    multiplies float16 where half precision is asked for, by such tokens or by autocast, and sums
    and compares float32. One component that is not a number leaves the labels of its image without
    meaning.

    Args:
        x: Tokens, (B, N, C), of a floating dtype.
        num_clusters: One cluster count M, from 1 to N, or a sequence of them in any order, which
            share one density and one score.
        k: Neighbours of the density estimate, the token itself included; at least 1. N where
            there are fewer tokens.
        backend: ``'reference'`` (the definition, O(N^2) memory), ``'tiled'`` (exact, O(N) memory,
            any device), ``'native'`` (exact, O(N) memory, compiled, float32 on a CPU),
            ``'triton'`` (exact on operands of 22 bits, or of 11 where half precision is asked
            for, O(N) memory, on a GPU), or None for ``'triton'`` or ``'native'`` where they can
            run and ``'tiled'`` elsewhere.
            ``'traceable'`` (O(N^2) memory) is one graph without control flow, to be exported.

    Returns:
        The cluster of every token, (B, N) int64 from 0 to M - 1: the rank of its centre by score.
        A tuple of them, in the order of the counts, if ``num_clusters`` is a sequence.

    Raises:
        ValueError: If the shape, dtype, a count, ``k`` or the backend is not one of these, or the
            backend asked for cannot run here (with the reason).
    """
    counts = list(num_clusters) if isinstance(num_clusters, Sequence) else [num_clusters]
    check_tokens(x)
    _check_counts(x.shape[1], counts, k)
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f'backend is {backend!r}; use None or one of {sorted(BACKENDS)}')
    k = min(k, x.shape[1])
    half = x.dtype in (torch.float16, torch.bfloat16) or autocast_dtype(x) is not None
    x = x.detach()
    if backend == 'triton' and (reason := can_run_triton(x, k)):
        raise ValueError(f"backend 'triton' cannot run: {reason}")
    # On a CPU the kernels are interpreted, for tests: only by name.
    if backend is None and x.is_cuda:
        reason = can_run_triton(x, k)
        if reason is None:
            backend = 'triton'
        else:
            warn_without_kernels(reason)
    if backend == 'triton':  # its first kernel converts on the way
        labels = dpc_knn_triton(x, counts, k, 'fp16' if half else 'fp16x3')
    else:
        with torch.no_grad(), without_autocast(x):  # it would round the distances
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if backend is None:
                backend = 'native' if can_run_native(x) is None else 'tiled'
            labels = BACKENDS[backend](x, counts, k)
    return tuple(labels) if isinstance(num_clusters, Sequence) else labels[0]


def check_tokens(x: Tensor) -> None:
    """Sees that a tensor holds tokens.

    Args:
        x: Should be (B, N, C), of a floating dtype, none of them 0.

    Raises:
        ValueError: If it is not.
    """
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f'x has shape {tuple(x.shape)}; tokens need (B, N, C), none of them 0')
    if not x.is_floating_point():
        raise ValueError(f'x has dtype {x.dtype}; tokens need a floating dtype')


def _check_counts(tokens: int, counts: list[int], k: int) -> None:
    if not counts:
        raise ValueError('num_clusters is empty; give at least one cluster count')
    for count in counts:
        if not 1 <= count <= tokens:
            raise ValueError(f'num_clusters is {count}; with {tokens} tokens use 1 to {tokens}')
    if k < 1:
        raise ValueError(f'k is {k}; use at least 1')
