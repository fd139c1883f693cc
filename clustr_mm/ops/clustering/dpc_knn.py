"""``dpc_knn``: one function in front of all backends, and the one place that picks among them.

The operator ``clustr_mm::dpc_knn`` is the same for all backends and devices; the choice is made
where it runs, so that a traced graph fits every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from clustr_mm.ops.clustering.native import can_run_native, dpc_knn_native
from clustr_mm.ops.clustering.reference import dpc_knn_reference
from clustr_mm.ops.clustering.tiled import dpc_knn_tiled
from clustr_mm.ops.clustering.traceable import dpc_knn_traceable
from clustr_mm.ops.dispatch import (
    Operator,
    autocast_dtype,
    integer,
    say_fallback,
    without_autocast,
)

_OF_TORCH = {
    'reference': dpc_knn_reference,
    'tiled': dpc_knn_tiled,
    'traceable': dpc_knn_traceable,
    'native': dpc_knn_native,
}
BACKENDS = (*_OF_TORCH, 'triton')

# What a larger component counts as: its square, and the sum of many, still have a float32.
_LARGEST = 1e15


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
    and compares float32. NaN and inf leave the labels of their image without meaning, but valid,
    and do not touch the other images.

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
            Nearly equal tokens keep their order in the first three, which take near distances by
            differences. In the last two, products leave little but rounding: of 1024 tokens on a
            curve in 64 channels, in steps of 0.004, ``'triton'`` finds 8 % and ``'traceable'`` 14 %
            of the definition's centres; of a smooth sky both find all, and 92 % and 86 % of the
            labels. With k = 2 tokens that are each other's nearest tie, and rounding breaks the tie
            in ``'triton'``.

    Returns:
        The cluster of every token, (B, N) int64 from 0 to M - 1: the rank of its centre by score.
        A tuple of them, in the order of the counts, if ``num_clusters`` is a sequence.

    Raises:
        ValueError: If the shape, dtype, a count, ``k`` or the backend is not one of these, or the
            backend asked for cannot run here (with the reason).
    """
    given = num_clusters if isinstance(num_clusters, Sequence) else [num_clusters]
    counts = [integer(count, 'num_clusters') for count in given]
    check_tokens(x)
    tokens, k = integer(x.shape[1], 'N'), integer(k, 'k')
    _check_counts(tokens, counts, k)
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f'backend is {backend!r}; use None or one of {sorted(BACKENDS)}')
    if not DPC_KNN.registered and torch._C._get_tracing_state() is not None:
        backend = 'traceable'  # before torch 2.4 a trace would keep what depends on the values
    half = x.dtype in (torch.float16, torch.bfloat16) or autocast_dtype(x) is not None
    run = _dpc_knn if backend == 'traceable' else DPC_KNN
    labels = run(x.detach(), counts, min(k, tokens), backend, half)
    return tuple(labels.unbind(0)) if isinstance(num_clusters, Sequence) else labels[0]


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


def _dpc_knn(
    x: Tensor, num_clusters: Sequence[int], k: int, backend: str | None, half: bool
) -> Tensor:
    """The operator: labels (S, B, N) int64 of S counts."""
    if backend == 'triton' or (backend is None and x.is_cuda):
        from clustr_mm.ops.clustering.triton import can_run_triton, dpc_knn_triton

        reason = can_run_triton(x, k)
        if reason is not None and backend == 'triton':
            raise ValueError(f"backend 'triton' cannot run: {reason}")
        if reason is not None:
            say_fallback('dpc_knn', reason)
        if reason is None:  # the first kernel converts on the way
            return dpc_knn_triton(x, num_clusters, k, 'fp16' if half else 'fp16x3')
        backend = 'tiled'
    with torch.no_grad(), without_autocast(x):  # it would round the distances
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if backend is None:
            reason = can_run_native(x)
            backend = 'native' if reason is None else 'tiled'
            if reason is not None and x.dtype == torch.float32:
                say_fallback('dpc_knn', reason)
        if backend != 'native':
            x = x.nan_to_num(0.0).clamp(-_LARGEST, _LARGEST)
        return _OF_TORCH[backend](x, num_clusters, k)


def _dpc_knn_fake(
    x: Tensor, num_clusters: Sequence[int], k: int, backend: str | None, half: bool
) -> Tensor:
    return x.new_empty((len(num_clusters), *x.shape[:2]), dtype=torch.int64)


DPC_KNN = Operator(
    'dpc_knn(Tensor x, SymInt[] num_clusters, SymInt k, str? backend, bool half) -> Tensor',
    _dpc_knn,
    _dpc_knn_fake,
)
