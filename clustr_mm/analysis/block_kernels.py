"""The kernels of a block beside plain PyTorch: their errors, and two of them by the clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm.analysis.kernels import error_ratio
from clustr_mm.analysis.roofline import time_call
from clustr_mm.models.attend import attend, attend_triton
from clustr_mm.ops.conv_gelu.conv_gelu import conv_gelu_triton

ConvGelu = Callable[[Tensor, tuple[int, int], Tensor, Tensor], Tensor]
Form = Callable[..., Tensor]


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


def plain_attention(q: Tensor, *kvs: Tensor, num_heads: int) -> Tensor:
    """Attention to several scales, by scaled_dot_product_attention.

    Args:
        q: Queries, (B, N, C).
        *kvs: For each scale keys and values, (B, M, 2 C).
        num_heads: Number of heads.

    Returns:
        (B, N, C).
    """
    return torch.stack([attend(q, kv, num_heads) for kv in kvs]).sum(0)


def with_gradients(
    form: Form, tensors: tuple[Tensor, ...], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Runs a function of tensors forward and backward.

    Args:
        form: The function.
        tensors: Its arguments, and the gradient at the result.
        dtype: To convert them to; None leaves them.

    Returns:
        The result, and the gradients of the arguments.
    """
    *inputs, grad = (t.detach().to(dtype or t.dtype) for t in tensors)
    inputs = [t.requires_grad_() for t in inputs]
    out = form(*inputs)
    out.backward(grad)
    gradients = (t.grad for t in inputs)
    return [out.detach(), *(t for t in gradients if t is not None)]


def _errors(kernels: Form, plain: Form, tensors: tuple[Tensor, ...]) -> list[float]:
    exact = with_gradients(plain, tensors, torch.float64)
    found, theirs = with_gradients(kernels, tensors), with_gradients(plain, tensors)
    return [error_ratio(*each) for each in zip(found, theirs, exact, strict=True)]


def conv_gelu_errors(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[float]:
    """Errors of the kernels against float64, as multiples of plain PyTorch's.

    Args:
        shape: B, H, W and C of random tokens.
        dtype: Of the tokens; weights are float32.
        device: Where.

    Returns:
        The ratios of the result and of the gradients of u, weight and bias.
    """
    return _errors(*_conv_gelu_forms(shape), _random(shape, dtype, device))


def attention_errors(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> list[float]:
    """Errors of the attention's kernels against float64, as multiples of plain PyTorch's.

    Args:
        shape: B, N, the two scales' M, and heads of 64 channels.
        dtype: Half precision.
        device: Where.

    Returns:
        The ratios of the result and of the gradients of queries and both scales.
    """
    return _errors(*_attention_forms(shape), _random_attention(shape, dtype, device))


def add_norm_errors(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> list[float]:
    """Errors of the residual sum's kernels against float64, as multiples of plain PyTorch's.

    Args:
        shape: B, N and C of random tokens, float32 as under autocast.
        dtype: Of what is added to them, and of the norm's result.
        device: Where.

    Returns:
        The ratios of the sum, its norm and the gradients of both inputs, weight and bias.
    """
    torch.manual_seed(0)
    x, y, of_total, of_normed = (torch.randn(shape, device=device) for _ in range(4))
    scale = torch.rand(shape[0], 1, 1, device=device)
    y, scale, of_normed = (t.to(dtype) for t in (y, scale, of_normed))

    def run(plain: bool, wide: torch.dtype | None) -> list[Tensor]:
        norm = nn.LayerNorm(shape[2], device=device, dtype=wide)
        a, b = (t.detach().to(wide or t.dtype).requires_grad_() for t in (x, y))
        if plain:
            total = a + b * scale.to(b.dtype)
            normed = norm(total).to(b.dtype)  # as the next layer rounds it
        else:
            total, normed, _ = torch.ops.clustr_mm.add_norm(
                a, b, scale, norm.weight, norm.bias, norm.eps, dtype, False
            )
        torch.autograd.backward(
            (total, normed), (of_total.to(total.dtype), of_normed.to(normed.dtype))
        )
        gradients = (t.grad for t in (a, b, norm.weight, norm.bias))
        return [total.detach(), normed.detach(), *(t for t in gradients if t is not None)]

    outcomes = run(False, None), run(True, None), run(True, torch.float64)
    return [error_ratio(*each) for each in zip(*outcomes, strict=True)]


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
    return _times(*_conv_gelu_forms(shape), _random(shape, dtype, device))


def time_attention(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Times the attention's kernels and plain PyTorch on the same tokens.

    Args:
        shape: B, N, the two scales' M, and heads of 64 channels.
        dtype: Half precision.
        device: Where.

    Returns:
        See ``time_conv_gelu``.
    """
    return _times(*_attention_forms(shape), _random_attention(shape, dtype, device))


def _times(
    kernels: Form, plain: Form, tensors: tuple[Tensor, ...]
) -> dict[str, tuple[float, float]]:
    times = {}
    for name, form in dict(kernels=kernels, plain=plain).items():
        with torch.no_grad():
            forward = time_call(partial(form, *tensors[:-1]), tensors[0].device, 0.2)
        both = time_call(partial(with_gradients, form, tensors), tensors[0].device, 0.2)
        times[name] = forward, both
    return times


def _conv_gelu_forms(shape: tuple[int, int, int, int]) -> tuple[Form, Form]:
    def of(form: ConvGelu) -> Form:
        return lambda u, weight, bias: form(u, (shape[1], shape[2]), weight, bias)

    return of(conv_gelu_triton), of(plain_conv_gelu)


def _attention_forms(shape: tuple[int, int, int, int, int]) -> tuple[Form, Form]:
    def kernels(q: Tensor, *kvs: Tensor) -> Tensor:
        return attend_triton(q, kvs, shape[-1])

    return kernels, partial(plain_attention, num_heads=shape[-1])


def _random_attention(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    batch, tokens, coarse, fine, heads = shape
    torch.manual_seed(0)
    q, *kvs, grad = (
        torch.randn(batch, n, width * 64 * heads, device=device).to(dtype)
        for n, width in ((tokens, 1), (coarse, 2), (fine, 2), (tokens, 1))
    )
    return q, *kvs, grad


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
