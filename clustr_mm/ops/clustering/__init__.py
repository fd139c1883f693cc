"""DPC-KNN: tokens in, the cluster of every token out.

``reference.py`` is the definition and the note of symbols. ``tiled.py`` has the same result in O(N)
memory, ``native.py`` in compiled code on a CPU, ``triton.py`` on a GPU; ``dpc_knn.py`` picks one.
``traceable.py`` is a graph to be exported.

``windows.py`` clusters the windows of a map each by itself, ``padding.py`` sequences of several
lengths.
"""

from clustr_mm.ops.clustering.dpc_knn import BACKENDS, dpc_knn
from clustr_mm.ops.clustering.native import can_run_native
from clustr_mm.ops.clustering.padding import Padding, padded_dpc_knn
from clustr_mm.ops.clustering.traceable import dpc_knn_traceable
from clustr_mm.ops.clustering.windows import WindowGroup, Windows, split_map, windowed_dpc_knn

__all__ = [
    'BACKENDS',
    'Padding',
    'WindowGroup',
    'Windows',
    'can_run_native',
    'dpc_knn',
    'dpc_knn_traceable',
    'padded_dpc_knn',
    'split_map',
    'windowed_dpc_knn',
]
