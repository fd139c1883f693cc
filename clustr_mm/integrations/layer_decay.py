"""Layer-wise learning-rate decay: the nearer to the image, the slower a layer learns.

Layer l of L + 1 learns at lr * rate^(L + 1 - l), with L the backbone's blocks: the first patch
embedding is layer 0, block l of all stages layer l, and all that is not the backbone layer L + 1.
A later stage's patch embedding goes with its first block, a stage's closing norm with its last.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", arXiv 2106.08254.
"""

from __future__ import annotations

from typing import Any, cast

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from clustr_mm.models import ClusTR
from clustr_mm.models.clustr import Stage


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ClusTRLayerDecay(DefaultOptimWrapperConstructor):
    """Builds an optimizer whose learning rates fall towards the image.

    In a config of any of the libraries::

        optim_wrapper = dict(
            constructor='ClusTRLayerDecay', paramwise_cfg=dict(layer_decay_rate=0.9)
        )

    Norms and biases get no weight decay. The other keys of ``paramwise_cfg``
    (``custom_keys`` and so on, see mmengine) hold as always; a ``lr_mult`` multiplies the layer's
    rate, and ``norm_decay_mult`` or ``bias_decay_mult`` bring weight decay back.

    Args:
        optim_wrapper_cfg: The config of the wrapper, with ``optimizer``, which names its ``lr``.
        paramwise_cfg: ``layer_decay_rate``, above 0 and up to 1, and mmengine's keys.

    Raises:
        ValueError: If the rate is missing or out of range, or the optimizer names no ``lr``.
    """

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
        depths = layer_depths(module)
        last = max(depths.values()) + 1
        merged: dict[tuple, dict[str, Any]] = {}
        for group in params:
            (parameter,) = group.pop('params')
            distance = last - depths.get(id(parameter), last)
            group['lr'] = group.get('lr', self.lr) * self.rate**distance
            key = tuple(sorted(group.items()))
            merged.setdefault(key, {**group, 'params': []})['params'].append(parameter)
        params[:] = sorted(merged.values(), key=lambda group: -group['lr'])


def layer_depths(model: nn.Module) -> dict[int, int]:
    """The layer of every parameter of a model's ClusTR.

    Args:
        model: A model with one ClusTR in it.

    Returns:
        Layers from 0, by the ``id`` of the parameter.

    Raises:
        ValueError: If there is no ClusTR, or there are several.
    """
    backbones = [module for module in model.modules() if isinstance(module, ClusTR)]
    if len(backbones) != 1:
        raise ValueError(
            f'{type(model).__name__} has {len(backbones)} ClusTR backbones; layer-wise decay '
            'needs one'
        )
    depths: dict[int, int] = {}
    layer = 0
    for index, each in enumerate(backbones[0].stages):
        stage = cast(Stage, each)
        _assign(depths, stage.patch_embed, layer + (index > 0))
        for block in stage.blocks:
            layer += 1
            _assign(depths, block, layer)
        _assign(depths, stage.norm, layer)
    return depths


def _assign(depths: dict[int, int], module: nn.Module, layer: int) -> None:
    depths.update((id(parameter), layer) for parameter in module.parameters())
