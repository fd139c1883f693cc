"""Multi-head attention to the cluster tokens of all scales, and its sum over the scales.

In plain PyTorch each scale is a call of scaled_dot_product_attention with heads moved to and fro,
and their results are added. Where clusters are few, as at 224 x 224, the host is busier with that
than the GPU. The kernels (``attend_kernels.py``) take queries, keys and values as the projections
leave them:

    forward    q, the scales' keys and values -> the sum of attention, one launch
    backward   the gradient of q; then those of keys and values, two launches

Sums are float32, operands half precision. No atomics: equal input gives equal output. torch.compile
and torch.export see ``clustr_mm::attend`` as a whole operator. Triton is imported when it first
runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clustr_mm.ops.clustering.triton import on_device_of, why_no_kernels
from clustr_mm.ops.operators import Operator

_DTYPES = (torch.float16, torch.bfloat16)
# Of a scale. The backward pass multiplies queries and keys once more than flash attention does,
# to keep nothing, which costs less than its launches where keys are few.
_MAX_KEYS = 256
_MAX_SCALES = 2
_MAX_CHANNELS = 64  # of a head
_ROWS = 64  # of a tile


def attend_to_scales(
    q: Tensor, kvs: Sequence[Tensor], num_heads: int, masks: Sequence[Tensor] | None = None
) -> Tensor:
    """Attention to the tokens of several scales, each with a softmax of its own, and their sum.

    Args:
        q: Queries, (B, N, C).
        kvs: For each scale keys and values of its M tokens, (B, M, 2 C).
        num_heads: Number of heads; divides C.
        masks: For each scale see ``attend``; None for all tokens.

    Returns:
        (B, N, C).
    """
    if masks is None and q.is_cuda and can_run_attend(q, kvs, num_heads) is None:
        return attend_triton(q, kvs, num_heads)
    total: Tensor | None = None
    for scale, kv in enumerate(kvs):
        out = attend(q, kv, num_heads, None if masks is None else masks[scale])
        total = out if total is None else total + out
    return cast(Tensor, total)


def attend(q: Tensor, kv: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head scaled dot-product attention.

    Args:
        q: Queries, (B, N, C).
        kv: Keys and values of M tokens, (B, M, 2 C).
        num_heads: Number of heads; divides C.
        mask: (B, M) bool, True at the tokens to attend to, at least one; None for all.

    Returns:
        (B, N, C).
    """
    if mask is not None:
        mask = mask[:, None, None]  # (B, 1, 1, M)
    q = q.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, N, 64)
    # In this order the gradients at k and v are joined as kv lies in memory.
    k, v = kv.unflatten(-1, (2, num_heads, -1)).unbind(2)  # (B, M, heads, 64)
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, M, 64)
    out = F.scaled_dot_product_attention(q, k, v, mask)  # (B, heads, N, 64)
    return out.transpose(1, 2).flatten(2)


def can_run_attend(q: Tensor, kvs: Sequence[Tensor], num_heads: int) -> str | None:
    """Says why the kernels cannot take these tokens.

    Args:
        q: Queries, (B, N, C).
        kvs: For each scale keys and values, (B, M, 2 C).
        num_heads: Number of heads.

    Returns:
        The reason and, where there is one, the mend; None if they can.
    """
    reason = why_no_kernels(q.device)
    if reason is not None:
        return reason
    channels = q.shape[2] // num_heads
    most = max(kv.shape[1] for kv in kvs)
    if q.dtype not in _DTYPES or any(kv.dtype != q.dtype for kv in kvs):
        return f'q has dtype {q.dtype}; the kernels take float16 and bfloat16, all of one dtype'
    if len(kvs) > _MAX_SCALES:
        return f'there are {len(kvs)} scales; the kernels take up to {_MAX_SCALES}'
    if most > _MAX_KEYS:
        return f'a scale has {most} tokens; the kernels take up to {_MAX_KEYS}'
    if channels > _MAX_CHANNELS:
        return f'a head has {channels} channels; the kernels take up to {_MAX_CHANNELS}'
    if q.shape[1] * q.shape[2] >= 2**31:  # 32-bit offsets within an image
        return f'q has {q.shape[1]} tokens; with {q.shape[2]} channels the kernels take fewer'
    return None


def attend_triton(q: Tensor, kvs: Sequence[Tensor], num_heads: int) -> Tensor:
    """``attend_to_scales`` by the kernels.

    Args:
        q: Queries, (B, N, C), float16 or bfloat16.
        kvs: For one or two scales keys and values, (B, M, 2 C) with M up to 256, of that dtype.
        num_heads: Number of heads, of up to 64 channels.

    Returns:
        (B, N, C). It can be differentiated once.
    """
    return ATTEND(q, kvs[0], kvs[1] if len(kvs) > 1 else None, num_heads)


def _attend(q: Tensor, kv: Tensor, other: Tensor | None, num_heads: int) -> Tensor:
    """Implementation of ``clustr_mm::attend``."""
    from clustr_mm.models.attend_kernels import attend_kernel

    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    batch, tokens, channels = q.shape
    kvs = _present(kv, other)
    with on_device_of(q):
        attend_kernel[(batch * num_heads * -(-tokens // _ROWS),)](
            q.contiguous(),
            kvs,
            out,
            tuple(each.shape[1] for each in kvs),
            tokens,
            BLOCK_M=_ROWS,
            BLOCK_N=_ROWS,
            num_warps=4,
            **_head(channels, num_heads),
        )
    return out


def _attend_fake(q: Tensor, kv: Tensor, other: Tensor | None, num_heads: int) -> Tensor:
    return q.new_empty(q.shape)


def _present(kv: Tensor, other: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in (kv, other) if each is not None)


def _head(channels: int, num_heads: int) -> dict[str, Any]:
    """What the kernels know of a head when they are compiled."""
    d = channels // num_heads
    return dict(
        HEADS=num_heads,
        D=d,
        FACTOR=math.log2(math.e) / math.sqrt(d),
        BLOCK_D=max(16, 1 << (d - 1).bit_length()),
    )


def _backward(
    grad: Tensor, q: Tensor, kv: Tensor, other: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of ``clustr_mm::attend_backward``.

    Returns:
        Gradients of q, of the first scale's keys and values, and of the other's or nothing.
    """
    from clustr_mm.models.attend_kernels import attend_backward_kernel, attend_backward_keys_kernel

    batch, tokens, channels = q.shape
    kvs = _present(kv, other)
    counts = tuple(each.shape[1] for each in kvs)
    grad, q = grad.contiguous(), q.contiguous()
    grad_q = torch.empty_like(q)
    grad_kvs = tuple(torch.empty_like(each) for each in kvs)
    facts = q.new_empty((len(kvs), batch, num_heads, 2, tokens), dtype=torch.float32)
    head = _head(channels, num_heads)
    with on_device_of(q):
        attend_backward_kernel[(batch * num_heads * -(-tokens // _ROWS),)](
            grad,
            q,
            kvs,
            grad_q,
            facts,
            counts,
            batch,
            tokens,
            BLOCK_M=_ROWS,
            BLOCK_N=_ROWS,
            num_warps=4,
            **head,
        )
        blocks = sum(-(-count // _ROWS) for count in counts)
        attend_backward_keys_kernel[(batch * num_heads * blocks,)](
            grad,
            q,
            kvs,
            grad_kvs,
            facts,
            counts,
            batch,
            tokens,
            BLOCK_M=_ROWS,
            BLOCK_N=_ROWS,
            num_warps=4,
            **head,
        )
    return grad_q, grad_kvs[0], grad_kvs[1] if len(kvs) > 1 else q.new_empty(0)


def _backward_fake(
    grad: Tensor, q: Tensor, kv: Tensor, other: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    of_other = q.new_empty((0,) if other is None else other.shape)
    return q.new_empty(q.shape), kv.new_empty(kv.shape), of_other


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, kv, other = ctx.saved_tensors
    grad_q, grad_kv, grad_other = ATTEND_BACKWARD(grad, q, kv, other, ctx.num_heads)
    return grad_q, grad_kv, None if other is None else grad_other, None


ATTEND = Operator(
    'attend(Tensor q, Tensor kv, Tensor? other, SymInt num_heads) -> Tensor',
    _attend,
    _attend_fake,
    _gradients,
    _remember,
)
ATTEND_BACKWARD = Operator(
    'attend_backward(Tensor grad, Tensor q, Tensor kv, Tensor? other, SymInt num_heads)'
    ' -> (Tensor, Tensor, Tensor)',
    _backward,
    _backward_fake,
)
