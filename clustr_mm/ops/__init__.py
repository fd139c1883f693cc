"""The operators of ClusTR: tensors in, tensors out. Needs torch alone.

``clustering/`` finds clusters of tokens, ``merging/`` makes cluster tokens of them, ``conv_gelu/``
is the middle of the MLP. In each room the definition is plain PyTorch; a faster way equals it, and
``dispatch.py`` says whether that can run.
"""

from clustr_mm.ops.clustering import dpc_knn
from clustr_mm.ops.merging.merge import merge_scales, merge_tokens

__all__ = ['dpc_knn', 'merge_scales', 'merge_tokens']
