"""The mathematics of ClusTR: tensors in, assignments and cluster tokens out. Imports torch alone.

``reference.py`` is the definition and the note of symbols; ``tiled.py`` the same result in O(N)
memory; ``dpc_knn.py`` picks between them; ``merge.py`` turns an assignment into cluster tokens;
``windows.py`` clusters the windows of a map each by itself, ``padding.py`` sequences of several
lengths.
"""

from clustr_mm.clustering.dpc_knn import BACKENDS, dpc_knn
from clustr_mm.clustering.merge import merge_tokens
from clustr_mm.clustering.padding import Padding, padded_dpc_knn
from clustr_mm.clustering.windows import WindowGroup, Windows, split_map, windowed_dpc_knn

__all__ = [
    'BACKENDS',
    'Padding',
    'WindowGroup',
    'Windows',
    'dpc_knn',
    'merge_tokens',
    'padded_dpc_knn',
    'split_map',
    'windowed_dpc_knn',
]
