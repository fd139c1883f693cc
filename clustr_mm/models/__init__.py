"""The attention and the backbone. Needs torch and mmengine alone, so that it runs without mmcv."""

from clustr_mm.models.class_weighted_loss import ClassWeightedCrossEntropy
from clustr_mm.models.cluster_attention import ClusterAttention, Clusters, SelfAttention
from clustr_mm.models.clustr import ARCHS, ClusTR
from clustr_mm.models.neck_chain import NeckChain

__all__ = [
    'ARCHS',
    'ClassWeightedCrossEntropy',
    'ClusTR',
    'ClusterAttention',
    'Clusters',
    'NeckChain',
    'SelfAttention',
]
