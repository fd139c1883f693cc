"""What each block of the backbone groups in an image: clusters, their centres, the tokens' weights.

A clustering gives labels only; which token is a cluster's centre is found by asking once more for
as many clusters as there are tokens: the labels are then the tokens' ranks as centres, and the
centres of M clusters are the first M (clustr_mm/ops/clustering/reference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from clustr_mm.models import ClusterAttention, Clusters, ClusTR
from clustr_mm.models.clustr import Block, Stage
from clustr_mm.ops.clustering import dpc_knn


@dataclass(frozen=True)
class BlockView:
    """How one block groups one image; h x w tokens.

    Attributes:
        stage: Number of the stage, from 1.
        block: Number of the block in it, from 1.
        depth: Blocks of the stage.
        labels: For each scale the clusters of the tokens, (h, w) integers.
        centres: For each scale the row and column of every cluster's centre, (M, 2) integers.
        weights: The tokens' weights in their clusters, (h, w); the logarithm is learnt.
        windows: How many windows were clustered each by itself; 1 for the whole image.
    """

    stage: int
    block: int
    depth: int
    labels: tuple[np.ndarray, ...]
    centres: tuple[np.ndarray, ...]
    weights: np.ndarray
    windows: int = 1


def clustering_blocks(backbone: ClusTR) -> dict[int, list[Block]]:
    """The blocks of every stage with cluster attention, by the stage's number, from 1."""
    stages = [[cast(Block, b) for b in cast(Stage, stage).blocks] for stage in backbone.stages]
    return {n: s for n, s in enumerate(stages, 1) if isinstance(s[0].attn, ClusterAttention)}


@torch.no_grad()
def view_blocks(
    backbone: ClusTR, image: Tensor, stages: Sequence[int] | None = None, blocks: Sequence[int] = ()
) -> list[BlockView]:
    """Runs the backbone on an image and looks at its blocks.

    Args:
        backbone: The backbone; it stays in its mode.
        image: (1, in_channels, height, width), normalised.
        stages: Numbers of stages, from 1; None for all with cluster attention.
        blocks: Numbers of blocks in each stage, from 1, or from the end, -1 being the last; empty
            for all. A stage that has no such block leaves it out.

    Raises:
        ValueError: If a stage has no clusters, or no block is left.
    """
    blocks_of = clustering_blocks(backbone)
    for number in stages or ():
        if number not in blocks_of:
            raise ValueError(f'stage {number} has no clusters; use stages of {list(blocks_of)}')
    seen: dict[Any, tuple[Tensor, tuple[int, int], Clusters]] = {}  # what each attention got
    handles = [
        block.attn.register_forward_pre_hook(lambda module, args: seen.update({module: args}))
        for each in blocks_of.values()
        for block in each
    ]
    training = backbone.training
    try:
        backbone.eval().cluster_maps(image)  # runs all stages, whichever maps are asked for
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    views = []
    for number in stages or blocks_of:
        depth, found = len(blocks_of[number]), None
        for index, block in enumerate(blocks_of[number], 1):
            attention = cast(ClusterAttention, block.attn)
            tokens, hw, clusters = seen[attention]
            if clusters is not found:  # a clustering of this block's own tokens
                found, centres = clusters, _centres(tokens, clusters, attention)
            if blocks and index not in blocks and index - depth - 1 not in blocks:
                continue
            single = torch.arange(tokens.shape[1])[None]
            weights = attention.token_weight(tokens).squeeze(-1).float().exp()  # (1, N)
            groups = clusters.windows.groups if clusters.windows is not None else ()
            windows = sum(len(group.tokens) for group in groups) or 1
            labels = [single if label is None else label for label in clusters.labels]
            maps = tuple(label.view(hw).cpu().numpy() for label in labels)
            places = tuple(np.stack(np.divmod(c.cpu().numpy(), hw[1]), axis=1) for c in centres)
            weight_map = weights.view(hw).cpu().numpy()
            views.append(BlockView(number, index, depth, maps, places, weight_map, windows))
    if not views:
        raise ValueError(f'blocks are {list(blocks)}; no stage has these')
    return views


def _centres(tokens: Tensor, clusters: Clusters, attention: ClusterAttention) -> list[Tensor]:
    """For each scale the token index of every cluster's centre, in the clusters' order, (M,)."""
    itself = torch.arange(tokens.shape[1], device=tokens.device)
    if clusters.windows is None:
        groups = [(itself[None], tuple(itself[None, :m] for m in clusters.num_clusters))]
    else:
        groups = [(group.tokens, group.clusters) for group in clusters.windows.groups]
    centres = [itself.new_empty(m) for m in clusters.num_clusters]
    for places, members in groups:
        inside = tokens[0, places]  # (windows, n, C)
        ranks = dpc_knn(inside, inside.shape[1], attention.k, attention.backend)
        order = places.gather(1, ranks.argsort(1))  # token indices, best centre first
        for scale, cluster in enumerate(members):
            centres[scale][cluster] = order[:, : cluster.shape[1]]
    return [
        itself if label is None else centre
        for label, centre in zip(clusters.labels, centres, strict=True)
    ]
