"""ClusTR for OpenMMLab: importing this package registers its parts in mmengine's registries.

``custom_imports = dict(imports=['clustr_mm'])`` in a config is all that a task library needs.
"""

from importlib.metadata import PackageNotFoundError, version

from clustr_mm.integrations.class_weighted_loss import ClassWeightedCrossEntropy
from clustr_mm.integrations.layer_decay import ClusTRLayerDecay
from clustr_mm.integrations.neck_chain import NeckChain
from clustr_mm.integrations.safetensors import load_safetensors as _load_safetensors  # noqa: F401
from clustr_mm.models import ClusterAttention, ClusTR
from clustr_mm.ops import dpc_knn, merge_tokens

try:
    __version__ = version('clustr-mm')
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = '0+unknown'

__all__ = [
    'ClassWeightedCrossEntropy',
    'ClusTR',
    'ClusTRLayerDecay',
    'ClusterAttention',
    'NeckChain',
    '__version__',
    'dpc_knn',
    'merge_tokens',
]
