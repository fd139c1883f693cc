"""Pictures of what the backbone groups, and of what a model predicts."""

from clustr_mm.visualization.curves import Run, plot_curves, read_run
from clustr_mm.visualization.overlay import (
    distinct_colors,
    draw_clusters,
    enlarge_labels,
    find_borders,
    paint_labels,
)
from clustr_mm.visualization.segmentation import compare_segmentation
from clustr_mm.visualization.sheet import make_sheet, save_picture

__all__ = [
    'Run',
    'compare_segmentation',
    'distinct_colors',
    'draw_clusters',
    'enlarge_labels',
    'find_borders',
    'make_sheet',
    'paint_labels',
    'plot_curves',
    'read_run',
    'save_picture',
]
