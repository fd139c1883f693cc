"""ClusTR, a vision transformer whose keys and values are clusters of tokens.

It needs torch alone. Where mmengine is installed, importing this package registers ``ClusTR`` in
mmengine's registries: ``custom_imports = dict(imports=['clustr_mm'])`` in a config is all that a
task library needs.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from clustr_mm.models import ClusterAttention
from clustr_mm.ops import dpc_knn, merge_tokens

__all__ = ['ClusTR', 'ClusterAttention', '__version__', 'dpc_knn', 'merge_tokens']

if find_spec('mmengine') is None:
    from clustr_mm.models import ClusTR
else:
    from clustr_mm.integrations.openmmlab import (
        ClassWeightedCrossEntropy,
        ClusTR,
        ClusTRLayerDecay,
        NeckChain,
    )

    __all__ += ['ClassWeightedCrossEntropy', 'ClusTRLayerDecay', 'NeckChain']

try:
    __version__ = version('clustr-mm')
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = '0+unknown'
