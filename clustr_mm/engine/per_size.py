"""Evaluation at any batch with the scores of batch 1: images of one size run together.

Where the images of a batch differ in size, mmseg refuses it, and in mmdet the neck and the heads
see the padding (the backbone does not with ``crop_padding``). These loops hand the model each run
of images of one size as a batch of its own, in the loader's order. In a config of any library::

    val_cfg = dict(type='clustr_mm.engine.per_size.PerSizeValLoop')
    test_cfg = dict(type='clustr_mm.engine.per_size.PerSizeTestLoop')
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop
from torch import Tensor


@LOOPS.register_module()
class PerSizeValLoop(ValLoop):
    """mmengine's ``ValLoop``; its hooks see each run of one size under the batch's index."""

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Evaluates a batch."""
        for part in parts_of_one_size(data_batch):
            super().run_iter(idx, part)


@LOOPS.register_module()
class PerSizeTestLoop(TestLoop):
    """mmengine's ``TestLoop``; its hooks see each run of one size under the batch's index."""

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Tests a batch."""
        for part in parts_of_one_size(data_batch):
            super().run_iter(idx, part)


def parts_of_one_size(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Splits a batch wherever the size changes from one image to the next.

    Args:
        batch: As mmengine's ``pseudo_collate`` makes it: ``inputs`` and what goes with them, lists
            over the samples; with test-time augmentation, lists over the augmentations of such
            lists. ``inputs`` that are one tensor have one size.
    """
    inputs = batch['inputs']
    if isinstance(inputs, Tensor):
        yield batch
        return
    augmented = isinstance(inputs[0], list)
    views = inputs if augmented else [inputs]
    sizes = zip(*([image.shape for image in view] for view in views), strict=True)
    start = 0
    for _, run in groupby(sizes):
        part = slice(start, start + len(list(run)))
        yield {
            key: [view[part] for view in values] if augmented else values[part]
            for key, values in batch.items()
        }
        start = part.stop
