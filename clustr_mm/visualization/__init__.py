"""Pictures of what the backbone groups; those of predictions are the libraries' own."""

from clustr_mm.visualization.clusters import draw_sheet, normalise, read_photo, show_clusters
from clustr_mm.visualization.hook import ClusterPictureHook
from clustr_mm.visualization.overlay import distinct_colors, draw_clusters, paint_labels
from clustr_mm.visualization.segmentation import compare_segmentation
from clustr_mm.visualization.views import BlockView, view_blocks

__all__ = [
    'BlockView',
    'ClusterPictureHook',
    'compare_segmentation',
    'distinct_colors',
    'draw_clusters',
    'draw_sheet',
    'normalise',
    'paint_labels',
    'read_photo',
    'show_clusters',
    'view_blocks',
]
