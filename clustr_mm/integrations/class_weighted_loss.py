"""Cross-entropy with class weights for segmentation, the same on every stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ClassWeightedCrossEntropy(nn.Module):
    """Cross-entropy averaged by class weight over the pixels that count.

    It equals ``CrossEntropyLoss(class_weight=...)`` of onedl-mmsegmentation. The one of
    mmsegmentation 1.2.2 looks up a weight for the label of ignored pixels too: an ``IndexError``.

    Args:
        class_weight: A weight for each class.
        loss_weight: Factor of the loss.
        loss_name: Its name in the logs. Begins with ``loss``, or it is not trained on.
    """

    def __init__(
        self,
        class_weight: Sequence[float],
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ) -> None:
        super().__init__()
        self.class_weight = list(class_weight)
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self, logits: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """Returns the loss, a scalar; 0 where every pixel is ignored.

        Args:
            logits: (B, C, H, W).
            label: (B, H, W) of class indices or ``ignore_index``.
            weight: (B, H, W), of a pixel sampler, or None.
            ignore_index: The label of pixels that do not count.
        """
        class_weight = logits.new_tensor(self.class_weight)
        loss = F.cross_entropy(
            logits, label, class_weight, ignore_index=ignore_index, reduction='none'
        )
        if weight is not None:
            loss = loss * weight
        total = class_weight[label[label != ignore_index]].sum()
        return self.loss_weight * loss.sum() / (total + torch.finfo(total.dtype).eps)
