"""What each block of the backbone groups in an image: clusters, their centres, the tokens' weights.

A clustering gives labels only; which token is a cluster's centre is found by asking once more for
as many clusters as there are tokens: the labels are then the tokens' ranks as centres, and the
centres of M clusters are the first M (clustr_mm/ops/clustering/reference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

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


@dataclass
class _Seen:
    """What a block's attention was called with."""

    tokens: Tensor  # (1, N, C)
    hw: tuple[int, int]
    clusters: Clusters


def clustering_blocks(backbone: ClusTR) -> dict[int, list[Block]]:
    """The blocks of every stage with cluster attention, by the stage's number, from 1."""
    found = {}
    for number, stage in enumerate(backbone.stages, 1):
        blocks = [cast(Block, block) for block in cast(Stage, stage).blocks]
        if isinstance(blocks[0].attn, ClusterAttention):
            found[number] = blocks
    return found


@torch.no_grad()
def view_blocks(
    backbone: ClusTR, image: Tensor, stages: Sequence[int] | None = None, blocks: Sequence[int] = ()
) -> list[BlockView]:
    """Runs the backbone on an image and looks at its blocks.

    Args:
        backbone: The backbone.
        image: (1, in_channels, height, width), normalised.
        stages: Numbers of stages, from 1; None for all with cluster attention.
        blocks: Numbers of blocks in each stage, from 1, or from the end, -1 being the last; empty
            for all. A stage that has no such block leaves it out.

    Returns:
        The blocks' views, in order.

    Raises:
        ValueError: If a stage has no clusters, or no block is left.
    """
    blocks_of = clustering_blocks(backbone)
    for number in stages or ():
        if number not in blocks_of:
            raise ValueError(f'stage {number} has no clusters; use stages of {list(blocks_of)}')
    seen: dict[tuple[int, int], _Seen] = {}
    with ExitStack() as stack:
        stack.callback(backbone.train, backbone.training)
        backbone.eval()
        for number, modules in blocks_of.items():
            for index, block in enumerate(modules, 1):
                handle = block.attn.register_forward_pre_hook(partial(_look, seen, (number, index)))
                stack.callback(handle.remove)
        backbone.cluster_maps(image)  # runs all stages, whichever maps are asked for
    views = []
    for number in stages or blocks_of:
        depth = len(blocks_of[number])
        found: Clusters | None = None
        for index, block in enumerate(blocks_of[number], 1):
            each, attention = seen[number, index], cast(ClusterAttention, block.attn)
            if each.clusters is not found:  # a clustering of this block's own tokens
                found = each.clusters
                centres = _centres(each, attention)
            if blocks and index not in blocks and index - depth - 1 not in blocks:
                continue
            views.append(_view(number, index, depth, each, centres, attention))
    if not views:
        raise ValueError(f'blocks are {list(blocks)}; no stage has these')
    return views


def _look(
    seen: dict[tuple[int, int], _Seen], key: tuple[int, int], module: nn.Module, args: Any
) -> None:
    seen[key] = _Seen(*args)


def _view(
    stage: int,
    block: int,
    depth: int,
    seen: _Seen,
    centres: tuple[Tensor, ...],
    attention: ClusterAttention,
) -> BlockView:
    single = torch.arange(seen.tokens.shape[1])[None]
    labels = (single if label is None else label for label in seen.clusters.labels)
    weights = attention.token_weight(seen.tokens).squeeze(-1).float().exp()  # (1, N)
    width = seen.hw[1]
    groups = seen.clusters.windows.groups if seen.clusters.windows is not None else ()
    return BlockView(
        stage,
        block,
        depth,
        tuple(label.view(seen.hw).cpu().numpy() for label in labels),
        tuple(torch.stack([c // width, c % width], dim=1).cpu().numpy() for c in centres),
        weights.view(seen.hw).cpu().numpy(),
        sum(len(group.tokens) for group in groups) or 1,
    )


def _centres(seen: _Seen, attention: ClusterAttention) -> tuple[Tensor, ...]:
    """For each scale the token index of every cluster's centre, in the clusters' order, (M,)."""
    tokens, clusters = seen.tokens, seen.clusters
    number = tokens.shape[1]
    itself = torch.arange(number, device=tokens.device)
    if clusters.windows is None:
        groups = [(itself[None], tuple(itself[None, :m] for m in clusters.num_clusters))]
    else:
        groups = [(group.tokens, group.clusters) for group in clusters.windows.groups]
    centres = [torch.empty(m, dtype=torch.int64, device=itself.device)
               for m in clusters.num_clusters]  # fmt: skip
    for places, members in groups:
        inside = tokens[0, places]  # (windows, n, C)
        ranks = dpc_knn(inside, inside.shape[1], attention.k, attention.backend)
        order = places.gather(1, ranks.argsort(1))  # token indices, best centre first
        for scale, cluster in enumerate(members):
            centres[scale][cluster] = order[:, : cluster.shape[1]]
    return tuple(
        itself if label is None else centre
        for label, centre in zip(clusters.labels, centres, strict=True)
    )
