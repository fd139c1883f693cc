"""How many parameters the model of a config has, and where."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, frozen ones included.

    Attributes:
        total: Of the whole model.
        backbone: Of ``backbone``.
        neck: Of ``neck``; 0 without one.
        heads: Of everything else: of all heads, an auxiliary one included.
    """

    total: int
    backbone: int
    neck: int
    heads: int


class _EmptyOnMeta(TorchFunctionMode):
    """Makes uninitialised tensors without memory, which is what layers make their weights of.

    ``torch.device('meta')`` would do it to all tensors, also to those whose values decide how a
    model is built.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs['device'] = 'meta'
        return func(*args, **kwargs)


def build_empty(cfg: Config) -> Any:
    """Builds a config's model without memory for its weights.

    Args:
        cfg: A config of mmdet, mmseg, mmpose or mmpretrain whose model has a ``backbone``.

    Returns:
        The model, its parameters on the meta device, its buffers wherever they were made.

    Raises:
        ValueError: If it has no model with a backbone.
    """
    with _EmptyOnMeta():
        return build_model(cfg)


def build_model(cfg: Config) -> Any:
    """Builds a config's model with the random weights of its layers' constructors.

    Args:
        cfg: A config of mmdet, mmseg, mmpose or mmpretrain whose model has a ``backbone``.

    Raises:
        ValueError: If it has no model with a backbone.
    """
    if 'backbone' not in (cfg.get('model') or {}):
        raise ValueError(f'config {cfg.filename} has no model with a backbone; give one that has')
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # not what the libraries say of it
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(copy.deepcopy(cfg.model))  # mmdet's DINO writes into it


def count_parameters(cfg: Config) -> Parameters:
    """Builds a config's model as ``build_empty`` does, and counts its parameters."""
    return parameters_of(build_empty(cfg))


def parameters_of(model: Any) -> Parameters:
    """Counts the parameters of a model of one of the libraries, which has a ``backbone``."""
    total, backbone, neck = (
        sum(parameter.numel() for parameter in part.parameters()) if part is not None else 0
        for part in (model, model.backbone, getattr(model, 'neck', None))
    )
    return Parameters(total, backbone, neck, total - backbone - neck)
