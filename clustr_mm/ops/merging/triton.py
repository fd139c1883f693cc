"""The merge on a GPU: all scales at once, with the layer that weighs the tokens if there is one.

    forward    x, labels, l -> cluster tokens          l = x . v + b where a layer gives it
    backward   their gradients, x, labels, l -> those of x and of l, or of v and b

A token's gradient is the sum over scales of what its clusters hand back, so that the backward pass
reads and writes the tokens once. The kernels are in ``merge_kernels.py``; sums are float32 and
without atomics. torch.compile and torch.export see ``clustr_mm::merge_tokens`` and its backward as
whole operators. Triton is imported when one of them first runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clustr_mm.ops.clustering.triton import on_device_of
from clustr_mm.ops.operators import Operator

_TOKENS = 32  # of a tile


def merge_triton(
    x: Tensor, assignment: Tensor | None, num_clusters: int, weight_logits: Tensor
) -> Tensor:
    """Weighted mean of the tokens of every cluster, see ``merge_tokens``.

    Args:
        x: Tokens, (B, N, C), float32, float16 or bfloat16.
        assignment: Cluster of every token, (B, N) int64 with values below ``num_clusters``; None
            where every token is a cluster of its own.
        num_clusters: Number of clusters M.
        weight_logits: Logarithms of the tokens' weights, (B, N).

    Returns:
        Cluster tokens, (B, M, C), of x's dtype. They can be differentiated once.
    """
    rows = MERGE_TOKENS(x, [assignment], [num_clusters], weight_logits, None, None)[0]
    return rows.view(x.shape[0], num_clusters, x.shape[2])


def merge_scales_triton(
    x: Tensor,
    assignments: Sequence[Tensor | None],
    num_clusters: Sequence[int],
    token_weight: nn.Linear,
) -> list[Tensor]:
    """Cluster tokens of several scales, see ``merge_scales``.

    Args:
        x: Tokens, (B, N, C), float32, float16 or bfloat16.
        assignments: For each scale as for ``merge_triton``.
        num_clusters: For each scale M.
        token_weight: The layer, C to 1, with a bias; it is not rounded.

    Returns:
        For each scale cluster tokens, (B, M, C), of x's dtype. They can be differentiated once.
    """
    batch, _, channels = x.shape
    counts = list(num_clusters)
    layer = token_weight.weight, token_weight.bias
    rows = MERGE_TOKENS(x, list(assignments), counts, None, *layer)[0]
    parts = rows.split([batch * count for count in counts])
    return [part.view(batch, m, channels) for part, m in zip(parts, counts, strict=True)]


def _merge(
    x: Tensor,
    assignments: list[Tensor | None],
    num_clusters: list[int],
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Implementation of ``clustr_mm::merge_tokens``.

    Returns:
        Cluster tokens, scale after scale, (B (M1 + M2 + ...), C), of x's dtype; and what the
        backward needs: of the scales with an assignment the same in float32, each cluster's
        largest logit, its sum of weights relative to that; and the layer's logits, (B, N) float32.
    """
    from clustr_mm.ops.merging.kernels import logits_kernel, merge_kernel, weigh_kernel

    outputs = _merge_fake(x, assignments, num_clusters, logits, weight, bias)
    merged, precise, shift, total, own_logits = outputs
    batch, tokens, channels = x.shape
    x, block_c = x.contiguous(), _channel_block(channels)
    with on_device_of(x):
        if weight is not None:
            logits = own_logits
            logits_kernel[(-(-batch * tokens // _TOKENS),)](
                x,
                weight.contiguous(),
                bias,
                logits,
                batch * tokens,
                C=channels,
                BLOCK_N=_TOKENS,
                BLOCK_C=block_c,
            )
        logits = logits.contiguous()  # type: ignore[union-attr]
        row = kept_row = 0  # clusters of the scales before
        for assignment, count in zip(assignments, num_clusters, strict=True):
            if assignment is None:
                weigh_kernel[(-(-batch * tokens // _TOKENS),)](
                    x,
                    logits,
                    merged,
                    batch * tokens,
                    row,
                    C=channels,
                    BLOCK_N=_TOKENS,
                    BLOCK_C=block_c,
                )
            else:
                rows = 16 if count <= 16 else 32
                merge_kernel[(batch * -(-count // rows) * -(-channels // block_c),)](
                    x,
                    assignment.contiguous(),
                    logits,
                    merged,
                    precise,
                    shift,
                    total,
                    tokens,
                    count,
                    row,
                    kept_row,
                    C=channels,
                    BLOCK_M=rows,
                    BLOCK_N=64,
                    BLOCK_C=block_c,
                )
                kept_row += batch * count
            row += batch * count
    return outputs


def _merge_fake(
    x: Tensor,
    assignments: list[Tensor | None],
    num_clusters: list[int],
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    pairs = list(zip(assignments, num_clusters, strict=True))
    kept = batch * sum(count for assignment, count in pairs if assignment is not None)
    return (
        x.new_empty(batch * sum(num_clusters), channels),
        x.new_empty(kept, channels, dtype=torch.float32),
        x.new_empty(kept, dtype=torch.float32),
        x.new_empty(kept, dtype=torch.float32),
        x.new_empty((0,) if weight is None else (batch, tokens), dtype=torch.float32),
    )


def _merge_backward(
    grad: Tensor,
    x: Tensor,
    assignments: list[Tensor | None],
    num_clusters: list[int],
    logits: Tensor,
    weight: Tensor | None,
    precise: Tensor,
    shift: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor]:
    """Implementation of ``clustr_mm::merge_tokens_backward``.

    Returns:
        Gradients of x, and of the logits; or, with a layer, of its weight and bias one after the
        other, (C + 1,) float32.
    """
    from clustr_mm.ops.merging.kernels import merge_backward_kernel

    batch, tokens, channels = x.shape
    programs = batch * -(-tokens // _TOKENS)
    x = x.contiguous()
    grad_x = torch.empty_like(x)
    # With a layer each program sums its own tokens' share, C + 1 values.
    shape = logits.shape if weight is None else (programs, channels + 1)
    found = logits.new_empty(shape, dtype=logits.dtype if weight is None else torch.float32)
    with on_device_of(x):
        merge_backward_kernel[(programs,)](
            grad.contiguous(),
            x,
            # A scale without labels reads none.
            tuple(logits if labels is None else labels.contiguous() for labels in assignments),
            logits.contiguous(),
            None if weight is None else weight.contiguous(),
            precise,
            shift,
            total,
            grad_x,
            found if weight is None else None,
            None if weight is None else found,
            batch,
            tokens,
            tuple(num_clusters),
            SINGLE=sum(1 << s for s, labels in enumerate(assignments) if labels is None),
            C=channels,
            BLOCK_N=_TOKENS,
            BLOCK_C=_channel_block(channels),
        )
    return grad_x, found if weight is None else found.sum(0)


def _merge_backward_fake(
    grad: Tensor,
    x: Tensor,
    assignments: list[Tensor | None],
    num_clusters: list[int],
    logits: Tensor,
    weight: Tensor | None,
    precise: Tensor,
    shift: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor]:
    if weight is None:
        return x.new_empty(x.shape), logits.new_empty(logits.shape)
    return x.new_empty(x.shape), x.new_empty((x.shape[2] + 1,), dtype=torch.float32)


def _channel_block(channels: int) -> int:
    """Channels of a tile: the power of two from 16 to 64 that holds them."""
    return min(64, max(16, 1 << (channels - 1).bit_length()))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, assignments, num_clusters, logits, weight, _ = inputs
    _, precise, shift, total, own_logits = output
    ctx.save_for_backward(
        x, own_logits if logits is None else logits, weight, precise, shift, total, *assignments
    )
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.num_clusters = num_clusters


def _gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    x, logits, weight, precise, shift, total, *assignments = ctx.saved_tensors
    # torch.library wants one for every tensor of a list of tensors.
    of_assignments = None if any(a is None for a in assignments) else [None] * len(assignments)
    if grad is None:  # nobody uses the cluster tokens
        return None, of_assignments, None, None, None, None
    grad_x, found = MERGE_TOKENS_BACKWARD(
        grad, x, assignments, ctx.num_clusters, logits, weight, precise, shift, total
    )
    if weight is None:
        return grad_x, of_assignments, None, found, None, None
    of_weight, of_bias = found.to(weight.dtype).split([x.shape[2], 1])
    return grad_x, of_assignments, None, None, of_weight[None], of_bias


MERGE_TOKENS = Operator(
    'merge_tokens(Tensor x, Tensor?[] assignments, SymInt[] num_clusters, Tensor? logits, '
    'Tensor? weight, Tensor? bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    _merge,
    _merge_fake,
    _gradients,
    _remember,
)
MERGE_TOKENS_BACKWARD = Operator(
    'merge_tokens_backward(Tensor grad, Tensor x, Tensor?[] assignments, SymInt[] num_clusters, '
    'Tensor logits, Tensor? weight, Tensor precise, Tensor shift, Tensor total)'
    ' -> (Tensor, Tensor)',
    _merge_backward,
    _merge_backward_fake,
)
