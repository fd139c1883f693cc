"""GELU(u + DWConv3x3(u)) of a map of tokens: the definition, and the choice among ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from clustr_mm.ops.dispatch import autocast_dtype, say_fallback, why_no_kernels

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def conv_gelu(u: Tensor, hw: tuple[int, int], dwconv: Callable[[Tensor], Tensor]) -> Tensor:
    """GELU(u + DWConv3x3(u)); on a GPU one pass over the map, on a CPU one convolution.

    Args:
        u: Tokens, (B, H W, C).
        hw: H and W.
        dwconv: Depthwise convolution of maps (B, C, H, W). Only the place of a plain ``nn.Conv2d``
            is taken: whatever somebody has hooked, wrapped or put there is called.

    Returns:
        (B, H W, C).
    """
    if u.is_cuda:
        reason = can_run_conv_gelu(u, dwconv)
        if reason is None:
            from clustr_mm.ops.conv_gelu.triton import conv_gelu_triton

            return conv_gelu_triton(u, hw, dwconv.weight, dwconv.bias)  # type: ignore[attr-defined]
        say_fallback('conv_gelu', reason)
    # Split before it is transposed: of one image the other order leaves strides in which oneDNN
    # does not see that channels are last, and takes five times as long.
    u = u.unflatten(1, hw).permute(0, 3, 1, 2)  # (B, C, H, W)
    if _is_one_convolution(u, dwconv):
        v = _as_one_convolution(u, cast(nn.Conv2d, dwconv))
    else:
        v = u + dwconv(u)
    return F.gelu(v).permute(0, 2, 3, 1).flatten(1, 2)


def _as_one_convolution(u: Tensor, dwconv: nn.Conv2d) -> Tensor:
    """One convolution for u + DWConv3x3(u), (B, C, H, W): its centre taps are larger by 1."""
    centre = F.pad(u.new_ones(1, 1), (1, 1, 1, 1))  # (3, 3)
    return F.conv2d(u, dwconv.weight + centre, dwconv.bias, padding=1, groups=u.shape[1])


def _is_one_convolution(u: Tensor, dwconv: Callable[[Tensor], Tensor]) -> bool:
    """Whether ``_as_one_convolution`` is as good: in half precision 1 + w would round w away."""
    return (
        u.device.type == 'cpu'
        and u.dtype in (torch.float32, torch.float64)
        and autocast_dtype(u) is None
        and _why_not_replaced(dwconv) is None
    )


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
