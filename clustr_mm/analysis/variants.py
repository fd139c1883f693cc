"""ClusTR with another attention, and a backbone that sees nothing: to hold the paper's against.

None is in the paper. In a config each is named by its path and takes the place of ``ClusTR``::

    backbone=dict(type='clustr_mm.analysis.variants.ClusTRVariant', attention='random', ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from clustr_mm.analysis.groupings import GROUPINGS, regroup
from clustr_mm.integrations.openmmlab import ClusTR
from clustr_mm.models import ClusterAttention, Clusters, SelfAttention
from clustr_mm.models.cluster_attention import attend
from clustr_mm.models.clustr import Block, Stage

CLUSTERS, SIZED, MEAN, MEAN_BUT_LAST = 'clusters', 'sized', 'mean', 'mean_but_last'


class SizedClusterAttention(ClusterAttention):
    """Cluster attention whose logits know how many tokens a cluster stands for.

    The logarithm of the cluster's size is added to its logits, so that equal keys get weight by
    the tokens behind them; an empty cluster gets none. (Bolya et al., "Token Merging: Your ViT But
    Faster", arXiv 2210.09461, section 3, proportional attention.)
    """

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int] | None = None,
        clusters: Clusters | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attends as ``ClusterAttention`` does, to clusters of the whole map or of windows.

        Raises:
            ValueError: If there is padding, or fine clusters are attended to by windows.
        """
        if self.fine_scope == 'window' or mask is not None:
            raise ValueError('attention by size knows neither padding nor fine_scope=window')
        clusters = self.cluster(x, hw) if clusters is None else clusters
        q, weight = self.q(x), self.token_weight(x).squeeze(-1)
        outs = []
        for scale, kv in enumerate(self.kvs):
            labels, count = clusters.labels[scale], clusters.num_clusters[scale]
            log_sizes = None  # all of one token: the same for every cluster
            if labels is not None:
                sizes = x.new_zeros(x.shape[0], count)
                sizes = sizes.scatter_add(1, labels, torch.ones_like(labels, dtype=x.dtype))
                log_sizes = sizes.log()  # (B, M)
            merged = self._merge(x, clusters, scale, weight)
            # torch adds a mask of numbers to the logits.
            outs.append(attend(q, kv(merged), self.num_heads, log_sizes))
        return self.proj(torch.stack(outs).sum(0))


class MeanAttention(SelfAttention):
    """Every token gets the mean of all values: attention that looks at no content."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias)
        del self.q  # nothing is asked
        self.kv = nn.Linear(dim, dim, bias=qkv_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps tokens (B, N, C) to (B, N, C).

        Raises:
            ValueError: If there is padding.
        """
        if mask is not None:
            raise ValueError('mean attention knows no padding; leave the mask out')
        return self.proj(self.kv(x.mean(1, keepdim=True))).expand_as(x)


@MODELS.register_module()
class ClusTRVariant(ClusTR):
    """ClusTR with another attention in place of cluster attention.

    Args:
        args: As for ``ClusTR``.
        attention: ``'clusters'``, the paper's; ``'sized'``, with the logarithm of a cluster's size
            in its logits; ``'mean'``, the mean of all tokens in every stage, dense ones too;
            ``'mean_but_last'``, that in the place of cluster attention alone; or a grouping:
            ``'balanced'``, ``'dense'``, ``'grid'``, ``'kmeans'``, ``'random'``.
        kwargs: As for ``ClusTR``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, *args: Any, attention: str = CLUSTERS, **kwargs: Any) -> None:
        known = (CLUSTERS, SIZED, MEAN, MEAN_BUT_LAST, *GROUPINGS)
        if attention not in known:
            raise ValueError(f'attention is {attention!r}; use one of {", ".join(known)}')
        super().__init__(*args, **kwargs)
        if attention in GROUPINGS:
            windows = kwargs.get('cluster_window')
            if windows is not None:
                raise ValueError(
                    f'attention is {attention!r}, which knows no windows, and cluster_window '
                    f'{windows}; leave one out'
                )
            regroup(self, attention)
        if attention in (SIZED, MEAN, MEAN_BUT_LAST):
            for stage in self.stages:
                for block in cast('list[Block]', cast(Stage, stage).blocks):
                    block.attn = _replacement(block.attn, attention)
            self.reset_parameters()


def _replacement(
    old: ClusterAttention | SelfAttention, attention: str
) -> ClusterAttention | SelfAttention:
    """What takes an attention's place, with parameters of its own."""
    dim, bias = old.proj.in_features, old.q.bias is not None
    if isinstance(old, SelfAttention) and attention != MEAN:
        return old
    if attention != SIZED:
        return MeanAttention(dim, old.num_heads, bias)
    old = cast(ClusterAttention, old)
    return SizedClusterAttention(
        dim, old.num_heads, old.reduction, old.scales, old.k, bias, old.cluster_window,
        old.fine_scope, old.backend,
    )  # fmt: skip


@MODELS.register_module()
class BlindBackbone(BaseModule):
    """Learned maps, the same for every image: what a task gives away without a look.

    A head on them learns the classes' shares, where in a picture each mostly is, the mean pose.

    Args:
        size: Height and width of the images that it is trained on; maps of others are stretched.
        channels: Of each map.
        strides: Of each map.
        init_cfg: mmengine's initialisation.
    """

    def __init__(
        self,
        size: Sequence[int],
        channels: Sequence[int] = (32, 64, 160, 256),
        strides: Sequence[int] = (4, 8, 16, 32),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.strides = tuple(strides)
        shapes = (
            (1, c, *(-(-side // s) for side in size))
            for c, s in zip(channels, strides, strict=True)
        )
        self.maps = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Gives the maps for images (B, C, height, width), at their size and strides."""
        outs = []
        for each, stride in zip(self.maps, self.strides, strict=True):
            hw = [-(-side // stride) for side in images.shape[2:]]
            fitted = (
                each
                if list(each.shape[2:]) == hw
                else F.interpolate(each, hw, mode='bilinear', align_corners=False)
            )
            outs.append(fitted.repeat(images.shape[0], 1, 1, 1))
        return tuple(outs)
