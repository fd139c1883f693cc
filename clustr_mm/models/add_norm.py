"""A residual sum and the LayerNorm that follows it, t = x + s y and LN(t); on a GPU in one pass.

In plain PyTorch under autocast the drop path's product, the sum, the norm and the rounding of its
result are four operators, each of which reads and writes all tokens, half of them in float32; the
backward pass has five. The kernels (``add_norm_kernels.py``) read and write everything once:

    forward    x, y -> t = x + s y,  LN(t) rounded as the next layer wants it
    backward   the gradients at t and at LN(t), t -> those of x, y, weight and bias

Statistics and sums are float32, and nothing is kept but t. No atomics: equal input gives equal
output. torch.compile and torch.export see ``clustr_mm::add_norm`` as a whole operator. Triton is
imported when it first runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clustr_mm.ops.autocast import autocast_dtype
from clustr_mm.ops.clustering.triton import on_device_of, why_no_kernels
from clustr_mm.ops.operators import Operator

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_CHANNELS = 4096  # of which a program holds whole tokens
_VALUES, _WARPS = 4096, 8  # of a tile: 16 a thread
_TILES = 8  # of a program of the backward pass, which sums the weights' gradient over them


def add_norm(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    norm: nn.LayerNorm,
    rounded: bool = True,
    unrounded: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A residual sum and its LayerNorm.

    Args:
        x: Tokens, (B, N, C).
        y: What is added to them, (B, N, C).
        scale: Of every image's y, (B, 1, 1); None for 1.
        norm: The norm, of C channels.
        rounded: Whether LN(t) may be rounded to what autocast asks for, because the next layer
            would do that.
        unrounded: Whether LN(t) is also wanted as it was before.

    Returns:
        t = x + scale y; LN(t); and with ``unrounded`` LN(t) in t's dtype, perhaps without a
        gradient, else anything. All (B, N, C).
    """
    if x.is_cuda and can_run_add_norm(x, y) is None:
        return add_norm_triton(x, y, scale, norm, rounded, unrounded)
    total = x + (y if scale is None else y * scale)
    normed = norm(total)
    return total, normed, normed


def can_run_add_norm(x: Tensor, y: Tensor) -> str | None:
    """Says why the kernels cannot take these tokens.

    Args:
        x: Tokens, (B, N, C).
        y: What is added, (B, N, C).

    Returns:
        The reason and, where there is one, the mend; None if they can.
    """
    reason = why_no_kernels(x.device)
    if reason is not None:
        return reason
    if x.dtype not in _DTYPES or y.dtype not in _DTYPES:
        return f'x and y are {x.dtype} and {y.dtype}; the kernels take float32, float16, bfloat16'
    if x.shape[2] > _MAX_CHANNELS:
        return f'x has {x.shape[2]} channels; the kernels take up to {_MAX_CHANNELS}'
    return None


def add_norm_triton(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    norm: nn.LayerNorm,
    rounded: bool = True,
    unrounded: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``add_norm`` by the kernels.

    Args:
        x: Tokens, (B, N, C), float32, float16 or bfloat16.
        y: What is added to them, (B, N, C), of one of these dtypes.
        scale: See ``add_norm``.
        norm: The norm, of C channels with weight and bias.
        rounded: See ``add_norm``.
        unrounded: See ``add_norm``.

    Returns:
        t in the wider of the two dtypes; LN(t) in the dtype that autocast asks for (t's where it
        is off or not ``rounded``); LN(t) in t's dtype, or nothing. The first two can be
        differentiated once.
    """
    total_dtype = torch.promote_types(x.dtype, y.dtype)
    dtype = (autocast_dtype(x) if rounded else None) or total_dtype
    both = unrounded and dtype != total_dtype
    total, normed, other = ADD_NORM(x, y, scale, norm.weight, norm.bias, norm.eps, dtype, both)
    return total, normed, other if both else normed


def _add_norm(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    unrounded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of ``clustr_mm::add_norm``."""
    from clustr_mm.models.add_norm_kernels import add_norm_kernel

    total, normed, other = _add_norm_fake(x, y, scale, weight, bias, eps, dtype, unrounded)
    batch, tokens, channels = x.shape
    rows, block_c = _tile(channels)
    with on_device_of(x):
        add_norm_kernel[(-(-batch * tokens // rows),)](
            x.contiguous(),
            y.contiguous(),
            scale,
            weight,
            bias,
            total,
            normed,
            other if unrounded else None,
            batch * tokens,
            tokens,
            eps,
            C=channels,
            BLOCK_N=rows,
            BLOCK_C=block_c,
            num_warps=_WARPS,
        )
    return total, normed, other


def _add_norm_fake(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    unrounded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    total = _empty_like(x, torch.promote_types(x.dtype, y.dtype))
    other = torch.empty_like(total) if unrounded else total.new_empty(0)
    return total, torch.empty_like(total, dtype=dtype), other


def _empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _tile(channels: int) -> tuple[int, int]:
    """Tokens of a tile, and the power of two that holds their channels."""
    block_c = max(16, 1 << (channels - 1).bit_length())
    return max(1, _VALUES // block_c), block_c


def _backward(
    grad_total: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    eps: float,
    x_dtype: torch.dtype,
    y_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of ``clustr_mm::add_norm_backward``.

    Returns:
        Gradients of x and y, and of weight and bias together, (2, C) float32.
    """
    from clustr_mm.models.add_norm_kernels import add_norm_backward_kernel

    batch, tokens, channels = total.shape
    rows, block_c = _tile(channels)
    programs = -(-batch * tokens // (_TILES * rows))
    grad_x, grad_y = (torch.empty_like(total, dtype=t) for t in (x_dtype, y_dtype))
    parts = total.new_empty(programs, 2, channels, dtype=torch.float32)
    with on_device_of(total):
        add_norm_backward_kernel[(programs,)](
            None if grad_total is None else grad_total.contiguous(),
            grad_normed.contiguous(),
            total,
            scale,
            weight,
            grad_x,
            grad_y,
            parts,
            batch * tokens,
            tokens,
            eps,
            C=channels,
            TILES=_TILES,
            BLOCK_N=rows,
            BLOCK_C=block_c,
            num_warps=_WARPS,
        )
    return grad_x, grad_y, parts.sum(0)


def _backward_fake(
    grad_total: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    eps: float,
    x_dtype: torch.dtype,
    y_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_y = (torch.empty_like(total, dtype=t) for t in (x_dtype, y_dtype))
    return grad_x, grad_y, total.new_empty((2, total.shape[2]), dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, scale, weight, _, eps, *_ = inputs
    ctx.save_for_backward(output[0], scale, weight)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.constants = eps, x.dtype, y.dtype


def _gradients(
    ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    total, scale, weight = ctx.saved_tensors
    if grad_normed is None:
        grad_normed = torch.zeros_like(total)
    grad_x, grad_y, grad_layer = ADD_NORM_BACKWARD(
        grad_total, grad_normed, total, scale, weight, *ctx.constants
    )
    return grad_x, grad_y, None, *grad_layer.to(weight.dtype).unbind(), None, None, None


ADD_NORM = Operator(
    'add_norm(Tensor x, Tensor y, Tensor? scale, Tensor weight, Tensor bias, float eps, '
    'ScalarType dtype, bool unrounded) -> (Tensor, Tensor, Tensor)',
    _add_norm,
    _add_norm_fake,
    _gradients,
    _remember,
)
ADD_NORM_BACKWARD = Operator(
    'add_norm_backward(Tensor? grad_total, Tensor grad_normed, Tensor total, Tensor? scale, '
    'Tensor weight, float eps, ScalarType x_dtype, ScalarType y_dtype)'
    ' -> (Tensor, Tensor, Tensor)',
    _backward,
    _backward_fake,
)
