"""The model inside what a run wraps it in."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrapped(model: Any) -> nn.Module:
    """Returns the model inside its wrappers for several processes and test-time augmentation.

    Args:
        model: A runner's model.

    Returns:
        nn.Module: The model whose parameters bear the names that checkpoints know.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
