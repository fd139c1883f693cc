"""The MLP's kernels beside plain PyTorch: their errors, and their time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clustr_mm.analysis.roofline import time_call
from clustr_mm.models.conv_gelu import conv_gelu_triton

ConvGelu = Callable[[Tensor, tuple[int, int], Tensor, Tensor], Tensor]


def plain_conv_gelu(u: Tensor, hw: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(u + DWConv3x3(u)) in u's own dtype, operator by operator.

    Args:
        u: Tokens, (B, H W, C).
        hw: H and W.
        weight: (C, 1, 3, 3).
        bias: (C,).

    Returns:
        (B, H W, C).
    """
    u = u.transpose(1, 2).unflatten(2, hw)
    v = u + F.conv2d(u, weight.to(u.dtype), bias.to(u.dtype), padding=1, groups=len(weight))
    return F.gelu(v).flatten(2).transpose(1, 2)


def with_gradients(
    function: ConvGelu, hw: tuple[int, int], tensors: tuple[Tensor, ...], dtype: torch.dtype | None
) -> list[Tensor]:
    """Runs a form of GELU(u + DWConv(u)) forward and backward.

    Args:
        function: The form.
        hw: H and W.
        tensors: u, weight, bias and the gradient at the result.
        dtype: To convert them to; None leaves them.

    Returns:
        The result, and the gradients of u, weight and bias.
    """
    *inputs, grad = (t.detach().to(dtype or t.dtype) for t in tensors)
    u, weight, bias = (t.requires_grad_() for t in inputs)
    out = function(u, hw, weight, bias)
    out.backward(grad)
    gradients = (t.grad for t in (u, weight, bias))
    return [out.detach(), *(t for t in gradients if t is not None)]


def conv_gelu_errors(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[float]:
    """Errors of the kernels against float64, as multiples of plain PyTorch's.

    Args:
        shape: B, H, W and C of random tokens.
        dtype: Of the tokens; weights are float32.
        device: Where.

    Returns:
        The ratios of the result and of the gradients of u, weight and bias; each over plain
        PyTorch's error and a quarter of the dtype's eps.
    """
    tensors = _random(shape, dtype, device)
    hw = (shape[1], shape[2])
    exact = with_gradients(plain_conv_gelu, hw, tensors, torch.float64)
    found = with_gradients(conv_gelu_triton, hw, tensors, None)
    plain = with_gradients(plain_conv_gelu, hw, tensors, None)
    ratios = []
    for a, b, c in zip(found, plain, exact, strict=True):
        errors = [torch.linalg.vector_norm(t.double() - c) for t in (a, b)]
        allowance = torch.finfo(dtype).eps / 4 * torch.linalg.vector_norm(c)
        ratios.append((errors[0] / (errors[1] + allowance)).item())
    return ratios


def time_conv_gelu(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Times the kernels and plain PyTorch on the same tokens.

    Args:
        shape: B, H, W and C.
        dtype: Of the tokens.
        device: Where.

    Returns:
        Seconds of a forward pass, and of one with its backward pass, by form.
    """
    tensors = _random(shape, dtype, device)
    hw = (shape[1], shape[2])
    times = {}
    forms: dict[str, ConvGelu] = dict(kernels=conv_gelu_triton, plain=plain_conv_gelu)
    for name, form in forms.items():
        with torch.no_grad():
            forward = time_call(partial(form, tensors[0], hw, *tensors[1:3]), device, 0.2)
        both = time_call(partial(with_gradients, form, hw, tensors, None), device, 0.2)
        times[name] = forward, both
    return times


def _random(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    batch, height, width, channels = shape
    torch.manual_seed(0)
    u, grad = (
        torch.randn(batch, height * width, channels, device=device).to(dtype) for _ in range(2)
    )
    weight = torch.randn(channels, 1, 3, 3, device=device) / 3
    return u, weight, torch.randn(channels, device=device), grad
