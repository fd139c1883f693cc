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
from mmengine.registry import HOOKS

from clustr_mm.engine.unwrapping import unwrapped
from clustr_mm.visualization.clusters import show_clusters


@HOOKS.register_module()
class ClusterPictureHook(Hook):
    """Draws the clusters of the first validation images at every validation.

    Args:
        images: How many images of the first batch to draw, at most.
        stages: As for ``show_clusters``.
        blocks: As for ``show_clusters``.
        scales: As for ``show_clusters``.
        side: As for ``show_clusters``.
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
        if images < 1:
            raise ValueError(f'images is {images}; use at least 1')
        self.images = images
        self.how: dict[str, Any] = dict(stages=stages, blocks=blocks, scales=scales, side=side)

    def before_train(self, runner: Any) -> None:
        """Refuses a model that no process has whole: the first draws alone.

        Args:
            runner: The runner.

        Raises:
            ValueError: If FSDP shares the model out.
        """
        if any('FullyShardedDataParallel' in type(m).__name__ for m in runner.model.modules()):
            raise ValueError(
                'ClusterPictureHook cannot draw with FSDP; leave it out of custom_hooks'
            )

    def before_val(self, runner: Any) -> None:
        """As :meth:`before_train`, for a run that validates only.

        Args:
            runner: The runner.

        Raises:
            ValueError: If FSDP shares the model out.
        """
        self.before_train(runner)

    @master_only
    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draws the first batch's images as the network got them, cropped and resized.

        Args:
            runner: The runner.
            batch_idx: Which batch this is, from 0.
            data_batch: What the data loader gave: ``inputs``, (3, H, W) uint8 BGR each.
            outputs: What the model predicted; not used.
        """
        if batch_idx > 0:
            return
        model = unwrapped(runner.model)
        for index, pixels in enumerate(data_batch['inputs'][: self.images]):
            photo = pixels.cpu().numpy().transpose(1, 2, 0)[..., ::-1]  # (H, W, 3) RGB
            sheet = show_clusters(
                model, np.ascontiguousarray(photo), title=f'iteration {runner.iter}', **self.how
            )
            runner.visualizer.add_image(f'clusters/{index}', np.asarray(sheet), runner.iter)
