"""What a segmentation model sees: image, truth, prediction and clusters side by side."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from clustr_mm.visualization.overlay import draw_clusters, enlarge_labels, paint_labels
from clustr_mm.visualization.sheet import make_sheet

_IGNORED = 255  # label of pixels that belong to no class
_SIDE = 480  # pixels of the shorter side that a picture has at least, so that outlines are fine


def compare_segmentation(
    model: Any,
    batches: Iterable[dict[str, Any]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    stage: int = 0,
    scale: int = 0,
    title: str = '',
) -> np.ndarray:
    """Draws a sheet with a row an image: image, truth, prediction, clusters.

    Args:
        model: A segmentation model of mmseg whose backbone is ClusTR.
        batches: Batches as a test data loader gives them; every image becomes a row.
        classes: The classes' names.
        palette: Their RGB colours.
        stage: Which stage's clusters to draw, from 0; its last block's are taken.
        scale: Which of their scales, from 0, the coarsest.
        title: A line above the sheet.

    Returns:
        np.ndarray: (H, W, 3) uint8, RGB.
    """
    rows, shown, count = [], set(), 0
    model.eval()
    for batch in batches:
        with torch.no_grad():
            samples = model.test_step(batch)
            inputs = model.data_preprocessor(batch, False)['inputs']  # (B, 3, H, W)
            maps = model.backbone.cluster_maps(inputs)[stage][-1][scale]  # (B, h, w)
        count = max(count, int(maps.max()) + 1)
        for sample, clusters in zip(samples, maps.cpu().numpy(), strict=True):
            image = _read(sample.img_path)
            truth = _labels(sample.gt_sem_seg, image)
            guess = _labels(sample.pred_sem_seg, image)
            rows.append(
                [
                    image,
                    paint_labels(image, truth, palette, alpha=0.7, ignore=_IGNORED),
                    paint_labels(image, guess, palette, alpha=0.7, ignore=_IGNORED),
                    draw_clusters(image, clusters),
                ]
            )
            # Only what covers something that can be seen is explained.
            for labels in (truth, guess):
                counts = np.bincount(labels[labels != _IGNORED], minlength=1)
                shown |= set(np.flatnonzero(counts > labels.size / 500).tolist())
    legend = [(classes[index].strip(), palette[index]) for index in sorted(shown)]
    columns = ('image', 'truth', 'prediction', f'{count} clusters (stage {stage + 1})')
    return make_sheet(rows, columns, legend=legend, title=title)


def _read(path: str) -> np.ndarray:
    """(H, W, 3) RGB, enlarged if it is small."""
    with Image.open(path) as file:
        image = file.convert('RGB')
    factor = max(1.0, _SIDE / min(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _labels(pixels: Any, image: np.ndarray) -> np.ndarray:
    """A sample's (1, h, w) label map at the size of its picture, (H, W)."""
    labels = pixels.data.squeeze(0).cpu().numpy()
    return enlarge_labels(labels, image.shape[:2])
