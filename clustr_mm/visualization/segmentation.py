"""What a segmentation model sees: image, truth, prediction and clusters side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from clustr_mm.datasets.labels import IGNORED
from clustr_mm.visualization.clusters import bare_axes, read_photo, rendered
from clustr_mm.visualization.overlay import draw_clusters, enlarge, paint_labels

_SIDE = 480  # pixels that a picture has at least, squared, so that outlines are fine


def compare_segmentation(
    model: Any,
    batches: Iterable[dict[str, Any]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    title: str = '',
) -> np.ndarray:
    """Draws a sheet with a row an image: image, truth, prediction, first stage's coarsest clusters.

    Args:
        model: A segmentation model of mmseg whose backbone is ClusTR.
        batches: Batches as a test data loader gives them; every image becomes a row.
        classes: The classes' names.
        palette: Their RGB colours, from 0 to 255.
        title: A line above the sheet.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    rows, shown, count = [], set(), 0
    model.eval()
    for batch in batches:
        with torch.no_grad():
            samples = model.test_step(batch)
            inputs = model.data_preprocessor(batch, False)['inputs']  # (B, 3, H, W)
            maps = model.backbone.cluster_maps(inputs)[0][-1][0]  # (B, h, w)
        count = max(count, int(maps.max()) + 1)
        for sample, clusters in zip(samples, maps.cpu().numpy(), strict=True):
            image = enlarge(read_photo(sample.img_path, None), _SIDE)
            row = [image]
            for each in (sample.gt_sem_seg, sample.pred_sem_seg):
                labels = each.data.squeeze(0).cpu().numpy()
                row.append(paint_labels(image, labels, palette, alpha=0.7, ignore=IGNORED))
                # Only what covers something that can be seen is explained.
                counts = np.bincount(labels[labels != IGNORED], minlength=1)
                shown |= set(np.flatnonzero(counts > labels.size / 500).tolist())
            rows.append([*row, draw_clusters(image, clusters)])
    columns = ('image', 'truth', 'prediction', f'{count} clusters (stage 1)')
    figure = Figure(figsize=(2.9 * len(columns), 2.9 * len(rows) + 1.1), layout='constrained')
    figure.suptitle(title)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, picture in enumerate(picture for row in rows for picture in row):
        title = columns[place] if place < len(columns) else ''
        bare_axes(grid.flat[place], picture, title)
    figure.legend(
        handles=[
            Patch(color=np.asarray(palette[index]) / 255, label=classes[index].strip())
            for index in sorted(shown)
        ],
        loc='outside lower center',
        ncols=8,
    )
    return rendered(figure)
