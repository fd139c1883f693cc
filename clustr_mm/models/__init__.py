"""The attention and the backbone. Needs torch alone."""

from clustr_mm.models.cluster_attention import ClusterAttention, Clusters, SelfAttention
from clustr_mm.models.clustr import ARCHS, ClusTR

__all__ = [
    'ARCHS',
    'ClusTR',
    'ClusterAttention',
    'Clusters',
    'SelfAttention',
]
