"""Cluster pictures during training, wherever the run's visualizer writes: TensorBoard, files.

In a config::

    custom_imports = dict(imports=['clustr_mm', 'clustr_mm.visualization'])
    custom_hooks = [dict(type='ClusterPictureHook')]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from clustr_mm.datasets.pixels import rgb_or_bands
from clustr_mm.visualization.clusters import show_clusters


@HOOKS.register_module()
class ClusterPictureHook(Hook):
    """Draws the clusters of the first validation images at every validation.

    Args:
        images: How many images of the first batch to draw, at most.
        stages, blocks, scales, side: As for ``show_clusters``.
    """

    priority = 'LOW'

    def __init__(
        self,
        images: int = 2,
        stages: Sequence[int] | None = None,
        blocks: Sequence[int] = (-1,),
        scales: Sequence[int] | None = None,
        side: int | None = 224,
    ) -> None:
        self.images = images
        self.how: dict[str, Any] = dict(stages=stages, blocks=blocks, scales=scales, side=side)

    @master_only
    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draws the first batch's images as the network got them, cropped and resized."""
        if batch_idx > 0:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for index, pixels in enumerate(data_batch['inputs'][: self.images]):
            photo = rgb_or_bands(pixels.cpu().numpy().transpose(1, 2, 0))
            sheet = show_clusters(model, photo, title=f'iteration {runner.iter}', **self.how)
            runner.visualizer.add_image(f'clusters/{index}', np.asarray(sheet), runner.iter)
