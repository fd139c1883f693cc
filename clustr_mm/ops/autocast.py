"""What autocast asks for, and how to leave it."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype to which autocast rounds a tensor for matrix products.

    Args:
        x: Any tensor.

    Returns:
        The dtype; None where autocast is off, for float64, which it leaves, and before torch 2.4,
        which does not say it for every device.
    """
    if not hasattr(torch, 'get_autocast_dtype') or x.dtype == torch.float64:
        return None
    device_type = _device_type(x)
    enabled = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which nothing is rounded to half precision.

    Args:
        x: Any tensor; the context is for its device.

    Returns:
        The context.
    """
    return torch.autocast(_device_type(x), enabled=False)


def _device_type(x: Tensor) -> str:
    """Autocast does not know the meta device."""
    return 'cpu' if x.is_meta else x.device.type
