"""PCK by the torso of each person, for mmpose's evaluators.

mmpose's ``PCKAccuracy(norm_item='torso')`` takes the torso between keypoints 4 and 5, JHMDB's;
elsewhere those are an elbow's and a wrist's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmpose.evaluation.functional import keypoint_pck_accuracy
from mmpose.registry import METRICS


@METRICS.register_module()
class TorsoPCK(BaseMetric):
    """Share of keypoints within a fraction of the person's own torso, the mean over keypoints.

    Yang and Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", IEEE TPAMI 35,
    2013, for one person a sample. A keypoint counts where it is annotated (visibility above 0).

    Args:
        thr: The fraction.
        torso: The two keypoints whose distance is the torso, in the annotation.
        prefix: Put before the metric's name ``tPCK``, the one that mmpose gives it.

    Raises:
        ValueError: In evaluation, of a person whose torso is not annotated or has no length.
    """

    def __init__(
        self, thr: float = 0.2, torso: tuple[int, int] = (0, 7), prefix: str | None = None
    ) -> None:
        super().__init__(prefix=prefix)
        self.thr = thr
        self.torso = torso

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps what the samples of a batch are scored by."""
        for sample in data_samples:
            truth = sample['gt_instances']
            keypoints = np.asarray(truth['keypoints'])[:1]  # (1, K, 2), in pixels of the picture
            visible = np.asarray(truth['keypoints_visible'])
            visible = (visible[..., 0] if visible.ndim == 3 else visible)[:1] > 0  # (1, K)
            first, second = self.torso
            length = float(np.linalg.norm(keypoints[0, first] - keypoints[0, second]))
            if not (visible[0, first] and visible[0, second] and length > 0):
                raise ValueError(
                    f'{sample.get("img_path", "a sample")}: no torso between keypoints {first} '
                    f'and {second}; leave the person out, or name others with torso=(A, B)'
                )
            predicted = np.asarray(sample['pred_instances']['keypoints'])[:1]
            self.results.append((predicted, keypoints, visible, length))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Scores all samples together: ``tPCK``, from 0 to 1."""
        predicted, truth, visible, lengths = zip(*results, strict=True)
        _, mean, _ = keypoint_pck_accuracy(
            np.concatenate(predicted),
            np.concatenate(truth),
            np.concatenate(visible),
            self.thr,
            np.repeat(np.array(lengths)[:, None], 2, axis=1),
        )
        return dict(tPCK=float(mean))
