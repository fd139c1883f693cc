"""GELU(u + DWConv3x3(u)) of a map of tokens: the definition, and the choice among ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from clustr_mm.ops.dispatch import say_fallback, why_no_kernels

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def conv_gelu(u: Tensor, hw: tuple[int, int], dwconv: Callable[[Tensor], Tensor]) -> Tensor:
    """GELU(u + DWConv3x3(u)); on a GPU one pass over the map.

    Args:
        u: Tokens, (B, H W, C).
        hw: H and W.
        dwconv: Depthwise convolution of maps (B, C, H, W). The kernel takes the place of a plain
            ``nn.Conv2d`` alone: whatever somebody has hooked, wrapped or put there is called.

    Returns:
        (B, H W, C).
    """
    if u.is_cuda:
        reason = can_run_conv_gelu(u, dwconv)
        if reason is None:
            from clustr_mm.ops.conv_gelu.triton import conv_gelu_triton

            return conv_gelu_triton(u, hw, dwconv.weight, dwconv.bias)  # type: ignore[attr-defined]
        say_fallback('conv_gelu', reason)
    u = u.transpose(1, 2).unflatten(2, hw)  # (B, C, H, W), channels last
    return F.gelu(u + dwconv(u)).flatten(2).transpose(1, 2)


def can_run_conv_gelu(u: Tensor, dwconv: Callable[[Tensor], Tensor]) -> str | None:
    """Says why the kernel cannot take these tokens, or the place of this convolution.

    Args:
        u: Tokens, (B, N, C).
        dwconv: The convolution.

    Returns:
        The reason and, where there is one, the mend; None if it can.
    """
    if u.dtype not in _DTYPES:
        return f'u has dtype {u.dtype}; the kernels take float32, float16 and bfloat16'
    if u.shape[1] * u.shape[2] >= 2**31:  # 32-bit offsets within an image
        return f'u has {u.shape[1]} tokens; with {u.shape[2]} channels the kernels take fewer'
    return _why_not_replaced(dwconv) or why_no_kernels('conv_gelu', u.device)


def _why_not_replaced(dwconv: Callable[[Tensor], Tensor]) -> str | None:
    """Why a convolution must be called."""
    if type(dwconv) is not nn.Conv2d:
        return f'dwconv is a {type(dwconv).__name__}; the kernel takes the place of nn.Conv2d alone'
    if 'forward' in vars(dwconv) or any(getattr(dwconv, hooks) for hooks in _HOOKS):
        return 'dwconv has hooks or a forward of its own, which are called'
    if nn_module._has_any_global_hook():
        return 'there are hooks for all modules, which are called'
    if any(
        parameter is None or is_traceable_wrapper_subclass(parameter)
        for parameter in (dwconv.weight, dwconv.bias)
    ):
        return 'dwconv has a weight or bias that is no plain tensor'
    geometry = (dwconv.kernel_size, dwconv.stride, dwconv.padding, dwconv.dilation)
    one_to_one = dwconv.groups == dwconv.in_channels == dwconv.out_channels
    if geometry != ((3, 3), (1, 1), (1, 1), (1, 1)) or not one_to_one:
        return f'dwconv is {dwconv}; the kernel computes a depthwise 3x3 of stride 1 and padding 1'
    if dwconv.padding_mode != 'zeros':
        return f'dwconv pads with {dwconv.padding_mode}; the kernel pads with zeros'
    return None
