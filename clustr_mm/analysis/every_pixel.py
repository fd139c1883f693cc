"""A picture's class as a label map, for networks whose every token is to say what it is part of."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LabelEveryPixel(BaseTransform):
    """Adds to an image with ``gt_label`` a ``gt_seg_map`` of its height and width, of that label.

    Transforms that come later may leave the two of different sizes: mmseg scores at the map's.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds ``gt_seg_map``, (H, W) uint8, and names it in ``seg_fields``."""
        shape = results['img'].shape[:2]
        results['gt_seg_map'] = np.full(shape, results['gt_label'], np.uint8)
        results['seg_fields'] = ['gt_seg_map']
        return results
