"""GELU(u + DWConv3x3(u)) on a GPU: the host side of its kernels (``kernels.py``).

In plain PyTorch the convolution, the sum and the GELU of the MLP each read and write a map of 4 or
8 times the channels: seven passes through the device's memory, and ten more in the backward pass.
The kernels take two and six, and keep one map less for the backward:

    forward    u -> GELU(v),  v = u + DWConv(u)
    backward   the gradient at GELU(v), u -> the gradient at v, which is made again
               the gradient at v, u -> the gradients of u, weight and bias

They take tokens as they are, channels last. Sums are float32, of unrounded weights. No atomics:
equal input gives equal output. torch.compile and torch.export see ``clustr_mm::conv_gelu`` as a
whole operator. Triton is imported when it first runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clustr_mm.ops.dispatch import Operator, on_device_of

_TOKENS, _CHANNELS, _WARPS = 32, 64, 8  # of a tile: 8 values a thread, 16 bytes in half precision
_TILES = 8  # of a program of the backward pass, which sums the weights' gradient over them


def conv_gelu_triton(u: Tensor, hw: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(u + DWConv3x3(u)) of a map of tokens.

    Args:
        u: Tokens, (B, H W, C), float32, float16 or bfloat16.
        hw: H and W.
        weight: Of the depthwise convolution, (C, 1, 3, 3).
        bias: (C,).

    Returns:
        (B, H W, C), of u's dtype. It can be differentiated once.
    """
    return CONV_GELU(u, weight, bias, *hw)


def _conv_gelu(u: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """Implementation of ``clustr_mm::conv_gelu``."""
    return _activate(u, weight, bias, None, height, width)


def _conv_gelu_fake(u: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    return u.new_empty(u.shape)


def _activate(
    u: Tensor, weight: Tensor, bias: Tensor, grad: Tensor | None, height: int, width: int
) -> Tensor:
    """GELU(v); with its gradient the gradient at v."""
    from clustr_mm.ops.conv_gelu.kernels import conv_gelu_kernel

    batch, tokens, channels = u.shape
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    with on_device_of(u):
        conv_gelu_kernel[(batch * -(-tokens // _TOKENS) * -(-channels // _CHANNELS),)](
            u.contiguous(),
            weight.contiguous(),
            bias,
            None if grad is None else grad.contiguous(),
            out,
            height,
            width,
            C=channels,
            BACKWARD=grad is not None,
            BLOCK_N=_TOKENS,
            BLOCK_C=_CHANNELS,
            num_warps=_WARPS,
        )
    return out


def _backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Implementation of ``clustr_mm::conv_gelu_backward``.

    Returns:
        Gradients of u, and of weight and bias one after the other, (9 C + C,) float32.
    """
    from clustr_mm.ops.conv_gelu.kernels import conv_backward_kernel

    batch, tokens, channels = u.shape
    programs = batch * -(-tokens // (_TILES * _TOKENS))
    grad_u = torch.empty_like(u, memory_format=torch.contiguous_format)
    parts = u.new_empty((programs, 10 * channels), dtype=torch.float32)
    with on_device_of(u):
        conv_backward_kernel[(programs * -(-channels // _CHANNELS),)](
            _activate(u, weight, bias, grad, height, width),
            u.contiguous(),
            weight.contiguous(),
            grad_u,
            parts,
            height,
            width,
            C=channels,
            TILES=_TILES,
            BLOCK_N=_TOKENS,
            BLOCK_C=_CHANNELS,
            num_warps=_WARPS,
        )
    return grad_u, parts.sum(0)


def _backward_fake(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty((10 * u.shape[2],), dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
    u, weight, bias, *hw = inputs
    ctx.save_for_backward(u, weight, bias)
    ctx.hw = hw


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    u, weight, bias = ctx.saved_tensors
    grad_u, grad_layer = CONV_GELU_BACKWARD(grad, u, weight, bias, *ctx.hw)
    of_weight, of_bias = grad_layer.to(weight.dtype).split([weight.numel(), len(bias)])
    return grad_u, of_weight.view(weight.shape), of_bias, None, None


CONV_GELU = Operator(
    'conv_gelu(Tensor u, Tensor weight, Tensor bias, SymInt height, SymInt width) -> Tensor',
    _conv_gelu,
    _conv_gelu_fake,
    _gradients,
    _remember,
)
CONV_GELU_BACKWARD = Operator(
    'conv_gelu_backward(Tensor grad, Tensor u, Tensor weight, Tensor bias, SymInt height, '
    'SymInt width) -> (Tensor, Tensor)',
    _backward,
    _backward_fake,
)
