"""A converted ClusTR learns from its PVTv2 teacher, in mmpretrain.

A config names the model by its whole path, which imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from torch import Tensor

from clustr_mm.weights.files import read_checkpoint, state_dict_of
from clustr_mm.weights.pvt_v2 import pvt_v2


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """A classifier whose backbone also learns the maps of its teacher, and its head the logits.

    Without a head it needs no labels: any photographs will do. The teacher is not part of the
    model: checkpoints do not hold it, and testing does not read it.

    Args:
        teacher: Checkpoint of PVTv2, a file or an address, with the body of ``backbone``, which
            returns all four maps.
        map_weight: Weight of the maps' losses, each the squared error relative to the variance of
            the teacher's map.
        logit_weight: Weight of the cross-entropy to what the teacher's head says; 0 where that has
            other classes.
        temperature: Both sides' logits are divided by it.
        teacher_arch: The teacher's body where it is not one of b0 to b4; see ``from_pvt_v2``.
        kwargs: As for mmpretrain's ``ImageClassifier``; ``head=None`` for images without labels.
    """

    def __init__(
        self,
        teacher: str,
        map_weight: float = 1.0,
        logit_weight: float = 1.0,
        temperature: float = 1.0,
        teacher_arch: Mapping[str, Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher
        self.teacher_arch = teacher_arch
        self.map_weight = map_weight
        self.logit_weight = logit_weight
        self.temperature = temperature
        self._networks: list[Any] = []  # in a list, which is no module: it is not saved

    def init_weights(self) -> None:
        """Initialises, and reads the teacher.

        Raises:
            CheckpointError: If the teacher cannot be read, or is no PVTv2 that fits.
            ValueError: If the teacher's maps or classes are not the student's.
        """
        super().init_weights()
        self._read_teacher()

    def _read_teacher(self) -> None:
        weights = state_dict_of(read_checkpoint(self.teacher), self.teacher)
        network, head = pvt_v2(weights, self.teacher_arch)
        if network.feature_info != self.backbone.feature_info:
            raise ValueError(
                f'teacher {self.teacher} has maps of {network.channels} channels, and the backbone '
                f'returns stages {self.backbone.out_indices} of {self.backbone.channels}; give it '
                "the teacher's arch and out_indices=(0, 1, 2, 3)"
            )
        if self.with_head and self.logit_weight:
            classes = None if head is None else head.out_features
            if classes != self.head.num_classes:
                raise ValueError(
                    f'teacher {self.teacher} has a head of {classes} classes and the student one '
                    f'of {self.head.num_classes}; set model.logit_weight=0'
                )
        self._networks = [network.requires_grad_(False), head]

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Losses by name: of the four maps; with a head also its own, and ``loss_logits``.

        Args:
            inputs: (B, 3, height, width).
            data_samples: The labels, where there is a head.
        """
        if not self._networks:  # nobody has asked for initial weights
            self._read_teacher()
        network, head = self._networks
        with torch.no_grad():
            network.to(inputs.device)
            targets = network(inputs)
        maps = self.backbone(inputs)
        losses = {}
        for stage, (given, target) in enumerate(zip(maps, targets, strict=True), start=1):
            error = F.mse_loss(given.float(), target.float()) / target.float().var()
            losses[f'loss_map{stage}'] = self.map_weight * error
        if not self.with_head:
            return losses
        pooled = self.neck(maps) if self.with_neck else maps
        losses.update(self.head.loss(pooled, data_samples))
        if self.logit_weight:
            with torch.no_grad():
                wanted = head.to(inputs.device)(targets[-1].mean((2, 3))) / self.temperature
            said = self.head(pooled) / self.temperature
            difference = F.cross_entropy(said.float(), wanted.float().softmax(-1))
            losses['loss_logits'] = self.logit_weight * self.temperature**2 * difference
        return losses
