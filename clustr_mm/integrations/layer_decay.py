"""The constructor behind ``ClusTRLayerDecay``: mmengine's parameter groups, with a rate a layer."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from clustr_mm import models


class LayerDecay(DefaultOptimWrapperConstructor):
    """What ``clustr_mm.ClusTRLayerDecay`` says, and with its arguments."""

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        given = dict(paramwise_cfg or {})
        rate = given.pop('layer_decay_rate', None)
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(
                f'paramwise_cfg.layer_decay_rate is {rate}; use above 0 and up to 1, say 0.9'
            )
        self.rate = rate
        no_decay = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
        super().__init__(optim_wrapper_cfg, {**no_decay, **given})
        self.lr: float = self.base_lr or 0.0
        if not self.lr:
            raise ValueError('optim_wrapper.optimizer names no lr; set it, for layers multiply it')

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Adds a module's parameters, with mmengine's rules; then their layers' rates.

        Args:
            params: Parameter groups, added to in place: one for each rate and weight decay, the
                largest rate (the config's, which is the one that is logged) first.
            module: The module.
            prefix: Its name in the model; empty for the model.
            kwargs: As for mmengine's method.

        Raises:
            ValueError: If the model has no ClusTR.
        """
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return  # part of the model: mmengine's method calls this one
        distances = _distances(module)
        merged: dict[tuple, dict[str, Any]] = {}
        for group in params:
            (parameter,) = group.pop('params')
            distance = distances.get(id(parameter), 0)
            group['lr'] = group.get('lr', self.lr) * self.rate**distance
            key = tuple(sorted(group.items()))
            merged.setdefault(key, {**group, 'params': []})['params'].append(parameter)
        params[:] = sorted(merged.values(), key=lambda group: -group['lr'])


def _distances(model: nn.Module) -> dict[int, int]:
    """How many layers each parameter of a model's ClusTR lies below the head, by its ``id``."""
    backbones = [module for module in model.modules() if isinstance(module, models.ClusTR)]
    if len(backbones) != 1:
        raise ValueError(
            f'{type(model).__name__} has {len(backbones)} ClusTR backbones; layer-wise decay '
            'needs one'
        )
    distances = {}
    for name, parameter in backbones[0].named_parameters():
        layer, layers = backbones[0].get_layer_depth(name)
        distances[id(parameter)] = layers - 1 - layer
    return distances
