"""Pictures of what the backbone groups, and of what a model predicts."""

from clustr_mm.visualization.clusters import draw_sheet, normalise, read_photo, show_clusters
from clustr_mm.visualization.curves import Run, plot_curves, read_run
from clustr_mm.visualization.hook import ClusterPictureHook
from clustr_mm.visualization.overlay import (
    distinct_colors,
    draw_clusters,
    enlarge_labels,
    find_borders,
    paint_labels,
)
from clustr_mm.visualization.segmentation import compare_segmentation
from clustr_mm.visualization.sheet import make_sheet, save_picture
from clustr_mm.visualization.views import BlockView, view_blocks

__all__ = [
    'BlockView',
    'ClusterPictureHook',
    'Run',
    'compare_segmentation',
    'distinct_colors',
    'draw_clusters',
    'draw_sheet',
    'enlarge_labels',
    'find_borders',
    'make_sheet',
    'normalise',
    'paint_labels',
    'plot_curves',
    'read_photo',
    'read_run',
    'save_picture',
    'show_clusters',
    'view_blocks',
]
