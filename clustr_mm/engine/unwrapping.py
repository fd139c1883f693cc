"""The model inside what a run wraps it in."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrapped(model: Any) -> nn.Module:
    """The model inside its wrappers, whose parameters bear the names that checkpoints know."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
