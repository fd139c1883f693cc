"""Predictions as one JSON file, in one format for every task.

The file is a list with a record for every image::

    {"image": path, "height": pixels, "width": pixels, ...}

and in it, by task:

- segmentation: ``segments``, one for every class in the image: ``category``, ``name``,
  ``segmentation``;
- detection: ``instances``: ``category``, ``name``, ``bbox``, ``score``, and ``segmentation`` where
  the model predicts masks;
- pose: ``persons``: ``bbox``, ``score``, ``keypoints``, a list of [x, y, score];
- classification: ``labels``, the five likeliest first: ``category``, ``name``, ``score``.

``category`` is the model's class index, ``name`` its name in the data set. Boxes are [x, y, width,
height] and keypoints [x, y], in pixels of the image as it is on disk. A ``segmentation`` is COCO's
run-length code, which pycocotools decodes.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from clustr_mm.datasets.masks import rle
from clustr_mm.engine.errors import UserError

_TOP = 5  # labels an image that a classifier's record keeps


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask as COCO does (column by column, compressed).

    Args:
        mask: (H, W) of any type; what is not zero is inside.

    Returns:
        dict: ``size`` [H, W] and ``counts``, a string.
    """
    counts = np.asarray(rle(np.asarray(mask) != 0)['counts'])
    # From the fourth on, COCO writes the difference to the run two before.
    values = counts.copy()
    values[3:] -= counts[1:-2]
    digits = []
    open_values = np.ones(values.size, dtype=bool)
    while open_values.any():  # five bits a turn, lowest first: (runs,)
        digit, values = values & 0x1F, values >> 5
        more = np.where(digit & 0x10, values != -1, values != 0)
        digits.append(np.where(open_values, digit + 48 + 0x20 * more, 0))
        open_values = open_values & more
    codes = np.stack(digits, axis=1).ravel()
    return {
        'size': [int(side) for side in np.shape(mask)],
        'counts': codes[codes > 0].astype(np.uint8).tobytes().decode('ascii'),
    }


def make_record(sample: dict[str, Any], classes: Sequence[str] | None) -> dict[str, Any]:
    """Turns one output of a model into its record.

    Args:
        sample: A data sample of mmseg, mmdet, mmpose or mmpretrain, as a dict.
        classes: The classes' names, by index.

    Returns:
        dict: The record that the module's docstring describes.

    Raises:
        ValueError: If the sample holds no prediction of these four tasks.
    """
    height, width = (int(side) for side in sample['ori_shape'][:2])
    record: dict[str, Any] = {'image': sample.get('img_path'), 'height': height, 'width': width}
    instances = sample.get('pred_instances')
    if 'pred_sem_seg' in sample:
        labels = _array(sample['pred_sem_seg']['data']).reshape(height, width)
        record['segments'] = [
            {**_category(index, classes), 'segmentation': encode_mask(labels == index)}
            for index in np.unique(labels)
        ]
    elif instances is not None and 'keypoints' in instances:
        points = np.concatenate(
            [_array(instances['keypoints']), _array(instances['keypoint_scores'])[..., None]], -1
        ).astype(np.float64)  # (persons, K, 3)
        record['persons'] = [
            {'bbox': _box(box), 'score': _number(score), 'keypoints': np.round(each, 4).tolist()}
            for box, score, each in zip(
                _array(instances['bboxes']), _array(instances['bbox_scores']), points, strict=True
            )
        ]
    elif instances is not None:
        record['instances'] = [
            {**_category(label, classes), 'bbox': _box(box), 'score': _number(score)}
            for label, box, score in zip(
                *(_array(instances[key]) for key in ('labels', 'bboxes', 'scores')), strict=True
            )
        ]
        for each, mask in zip(record['instances'], instances.get('masks', ()), strict=False):
            each['segmentation'] = encode_mask(_array(mask))
    elif 'pred_score' in sample:
        scores = _array(sample['pred_score'])
        record['labels'] = [
            {**_category(index, classes), 'score': _number(scores[index])}
            for index in np.argsort(-scores, kind='stable')[:_TOP]
        ]
    else:
        raise ValueError(f'no prediction that --out knows among {sorted(sample)}')
    return record


@METRICS.register_module()
class PredictionFile(BaseMetric):
    """Writes every prediction of a test run to one file (see the module's docstring).

    Args:
        out: Path of the JSON file.
    """

    default_prefix = 'predictions'

    def __init__(self, out: str) -> None:
        super().__init__()
        if os.path.isdir(out):
            raise UserError(f'--out {out} is a folder; name a file in it')
        self.out = out
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps one batch's records.

        Args:
            data_batch: What went in; not used.
            data_samples: What came out.
        """
        classes = (self.dataset_meta or {}).get('classes')
        self.results += [make_record(sample, classes) for sample in data_samples]

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Writes the file; persons of one image, which are predicted apart, share its record.

        Args:
            results: The records of all processes.

        Returns:
            dict: Nothing: a file is no metric.
        """
        records: dict[Any, dict[str, Any]] = {}
        for index, record in enumerate(results):
            if 'persons' not in record:
                records[index] = record
            elif record['image'] in records:
                records[record['image']]['persons'] += record['persons']
            else:
                records[record['image']] = record
        with open(f'{self.out}.part', 'w') as file:
            json.dump(list(records.values()), file)
        os.replace(f'{self.out}.part', self.out)
        print_log(f'Predictions of {len(records)} images: {self.out}', logger='current')
        return {}


def _array(values: Any) -> np.ndarray:
    """(...) as numpy, wherever it was."""
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else np.asarray(values)


def _category(index: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    name = classes[int(index)].strip() if classes is not None and index < len(classes) else None
    return {'category': int(index), 'name': name}


def _box(corners: np.ndarray) -> list[float]:
    """[x, y, width, height] of (4,) left, top, right, bottom."""
    left, top, right, bottom = (float(value) for value in corners)
    return [round(value, 3) for value in (left, top, right - left, bottom - top)]


def _number(value: Any) -> float:
    return round(float(value), 6)
