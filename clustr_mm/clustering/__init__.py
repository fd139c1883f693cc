"""The mathematics of ClusTR: tensors in, assignments and cluster tokens out. Imports torch alone.

``reference.py`` is the definition and the note of symbols. ``tiled.py`` has the same result in O(N)
memory, ``native.py`` in compiled code on a CPU, ``triton_backend.py`` on a GPU; ``dpc_knn.py``
picks one. ``merge.py`` turns an assignment into cluster tokens; ``windows.py`` clusters the windows
of a map each by itself, ``padding.py`` sequences of several lengths.
"""

from clustr_mm.clustering.autocast import autocast_dtype
from clustr_mm.clustering.dpc_knn import BACKENDS, dpc_knn
from clustr_mm.clustering.merge import merge_scales, merge_tokens
from clustr_mm.clustering.native import can_run_native
from clustr_mm.clustering.padding import Padding, padded_dpc_knn
from clustr_mm.clustering.triton_backend import can_run_triton
from clustr_mm.clustering.windows import WindowGroup, Windows, split_map, windowed_dpc_knn

__all__ = [
    'BACKENDS',
    'Padding',
    'WindowGroup',
    'Windows',
    'autocast_dtype',
    'can_run_native',
    'can_run_triton',
    'dpc_knn',
    'merge_scales',
    'merge_tokens',
    'padded_dpc_knn',
    'split_map',
    'windowed_dpc_knn',
]
