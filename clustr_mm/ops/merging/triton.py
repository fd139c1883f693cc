"""The merge on a GPU: the host side of its kernels (``kernels.py``).

    forward    x, sorted labels, l -> cluster tokens     a program reads one cluster's tokens
    backward   their gradient, x, labels, l -> those of x and l     a gather

Sums are float32 and without atomics: equal input gives equal output. No value is read back: the
host never waits. Triton is imported when a kernel first runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clustr_mm.ops.dispatch import on_device_of, why_no_kernels

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TOKENS = 32  # of a tile


def can_run_merge(x: Tensor) -> str | None:
    """Says why the kernels cannot merge tokens (B, N, C): the reason and the mend, or None."""
    if x.dtype not in _DTYPES:
        return f'x has dtype {x.dtype}; the kernels take float32, float16 and bfloat16'
    return why_no_kernels('merge', x.device)


def merge_triton(
    x: Tensor, assignment: Tensor, num_clusters: int, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges tokens of float32, float16 or bfloat16; see ``merge.merge_plain``."""
    from clustr_mm.ops.merging.kernels import merge_kernel

    batch, tokens, channels = x.shape
    merged = x.new_empty((batch, num_clusters, channels), dtype=torch.float32)
    largest = x.new_empty((batch, num_clusters), dtype=torch.float32)
    total = torch.empty_like(largest)
    labels, order = assignment.sort(dim=1, stable=True)
    block_c = _channel_block(channels)
    with on_device_of(x):
        cluster = torch.arange(num_clusters + 1, device=x.device).expand(batch, -1).contiguous()
        # Sorted, a cluster's tokens are a segment; numbers that are no cluster lie outside of all.
        starts = torch.searchsorted(labels, cluster)  # (B, M + 1)
        merge_kernel[(batch * num_clusters * -(-channels // block_c),)](
            x.contiguous(),
            logits.contiguous(),
            order,
            starts,
            merged,
            largest,
            total,
            tokens,
            num_clusters,
            C=channels,
            BLOCK_N=_TOKENS,
            BLOCK_C=block_c,
        )
    return merged, largest, total


def merge_backward_triton(
    grad: Tensor,
    x: Tensor,
    assignment: Tensor,
    logits: Tensor,
    merged: Tensor,
    largest: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients at x and at the logits; see ``merge.merge_backward_plain``."""
    from clustr_mm.ops.merging.kernels import merge_backward_kernel

    batch, tokens, channels = x.shape
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    with on_device_of(x):
        merge_backward_kernel[(batch * -(-tokens // _TOKENS),)](
            grad.contiguous(),
            x.contiguous(),
            assignment.contiguous(),
            logits.contiguous(),
            merged,
            largest,
            total,
            grad_x,
            grad_logits,
            tokens,
            merged.shape[1],
            C=channels,
            BLOCK_N=_TOKENS,
            BLOCK_C=_channel_block(channels),
        )
    return grad_x, grad_logits


def _channel_block(channels: int) -> int:
    """Channels of a tile: the power of two from 16 to 64 that holds them."""
    return min(64, max(16, 1 << (channels - 1).bit_length()))
