"""A model's layers as one function of the images: no targets, no losses, no suppression.

What depends on values cannot be counted on tensors that have none, so a detector's heads get as
many regions as they have at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from clustr_mm.models import ClusTR


def ignore_values(model: nn.Module) -> None:
    """Lets ClusTR run on tensors without values: it looks for no padding."""
    for module in model.modules():
        if isinstance(module, ClusTR):
            module.crop_padding = False


class Network(nn.Module):
    """The layers of a backbone or of a model of mmdet, mmseg, mmpose or mmpretrain.

    Cutting regions out of maps is not among them. In training mode a segmentor's auxiliary head
    runs too, and a two-stage detector's heads take as many regions as are sampled; else as many
    proposals and detections as its ``test_cfg`` allows.

    Args:
        model: The model; its ClusTR looks for no padding from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        ignore_values(model)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (B, 3, height, width) to all that the last layers return."""
        model: Any = self.model
        if not hasattr(model, 'backbone'):
            return _tensors(model(images))
        if hasattr(model, 'roi_head'):
            maps = model.extract_feat(images)
            return _tensors([model.rpn_head(maps), self._of_regions(images)])
        if self.training and getattr(model, 'auxiliary_head', None) is not None:
            maps = model.extract_feat(images)
            heads = model.auxiliary_head
            heads = heads if isinstance(heads, nn.ModuleList) else [heads]
            return _tensors([head(maps) for head in (model.decode_head, *heads)])
        return _tensors(model(images, None, mode='tensor'))

    def _of_regions(self, images: Tensor) -> list[Any]:
        roi = self.model.roi_head
        outputs = []
        for name, regions in self._regions().items():
            if not getattr(roi, f'with_{name}'):
                continue
            extractors = _as_list(getattr(roi, f'{name}_roi_extractor'))
            heads = _as_list(getattr(roi, f'{name}_head'))
            for extractor, head in zip(extractors, heads, strict=True):
                shape = (
                    len(images) * regions,
                    extractor.out_channels,
                    *extractor.roi_layers[0].output_size,
                )
                maps = images.new_empty(shape, requires_grad=torch.is_grad_enabled())
                outputs.append(head(maps))
        return outputs

    def _regions(self) -> dict[str, int]:
        """How many regions of an image its heads take, by head."""
        model: Any = self.model
        if not self.training:
            test = model.test_cfg
            return dict(bbox=test['rpn']['max_per_img'], mask=test['rcnn']['max_per_img'])
        train = model.train_cfg['rcnn']
        sampler = (train[0] if isinstance(train, Sequence) else train)['sampler']
        return dict(bbox=sampler['num'], mask=int(sampler['num'] * sampler['pos_fraction']))


def _as_list(part: nn.Module) -> Sequence[Any]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _tensors(tree: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
