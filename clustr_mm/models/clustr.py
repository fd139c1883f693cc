"""ClusTR: a four-stage vision transformer whose keys and values are clusters of tokens.

Xie et al., "ClusTR: Exploring Efficient Self-attention via Clustering for Vision Transformers",
arXiv 2208.13138. Shapes in comments: B images, N = H W tokens of a stage, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clustr_mm.models.cluster_attention import (
    ClusterAttention,
    Clusters,
    FineScope,
    SelfAttention,
)
from clustr_mm.models.crop_padding import without_padding
from clustr_mm.ops.conv_gelu import conv_gelu
from clustr_mm.ops.dispatch import integer

# The published variants b1, b2 and b3, and bodies that take PVTv2's weights (weights/pvt_v2.py). A
# reduction of 1 means ordinary self-attention.
ARCHS: dict[str, dict[str, tuple[int, ...]]] = {
    name: dict(
        embed_dims=dims,
        depths=depths,
        num_heads=heads,
        mlp_ratios=(8, 8, 4, 4),
        reductions=(8, 4, 2, 1),
    )
    for name, dims, depths, heads in (
        ('tiny', (64, 128, 256, 512), (1, 2, 6, 1), (1, 2, 4, 8)),
        ('small', (64, 128, 256, 512), (3, 5, 13, 2), (1, 2, 4, 8)),
        ('base', (64, 128, 320, 512), (3, 5, 18, 3), (1, 2, 5, 8)),
        ('pvt_v2_b0', (32, 64, 160, 256), (2, 2, 2, 2), (1, 2, 5, 8)),
        ('pvt_v2_b1', (64, 128, 320, 512), (2, 2, 2, 2), (1, 2, 5, 8)),
        ('pvt_v2_b2', (64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8)),
        ('pvt_v2_b3', (64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8)),
        ('pvt_v2_b4', (64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8)),
    )
}


class DropPath(nn.Module):
    """Drops a residual branch for some images of a batch (stochastic depth, Huang et al. 2016).

    Args:
        rate: Probability of dropping, from 0 to below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scales the images that stay so that the expectation does not change."""
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f'rate={self.rate:.3f}'


class PatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution and a LayerNorm.

    Args:
        in_channels: Channels of the map that comes in.
        dim: Channels C of the tokens.
        patch: Side of a patch.
        stride: Distance of two patches.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch, stride=stride, padding=patch // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embeds a map (B, in_channels, height, width) as tokens (B, H W, C) and (H, W)."""
        x = self.proj(x)  # (B, C, H, W)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class MLP(nn.Module):
    """Linear, GELU(u + DWConv3x3(u)), Linear. The convolution is where positions come from.

    Args:
        dim: Channels C.
        hidden: Channels in between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Maps tokens (B, H W, C) to (B, H W, C)."""
        return self.fc2(conv_gelu(self.fc1(x), hw, self.dwconv))


class Block(nn.Module):
    """A transformer block: x + Attn(LN(x)), then x + MLP(LN(x)).

    Args:
        dim: Channels C.
        attn: The attention.
        mlp_ratio: Hidden channels of the MLP, as a multiple of ``dim``.
        drop_path: Probability of dropping a branch.
    """

    def __init__(
        self, dim: int, attn: ClusterAttention | SelfAttention, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def cluster(self, x: Tensor, hw: tuple[int, int]) -> Clusters:
        """Finds the clusters of tokens (B, N, C), by content, after the norm.

        ``forward`` norms them again: 0.35 % of the time of a network on a CPU at 224 x 224.
        """
        # Not in torch.no_grad: there mixed precision would remember weights without a gradient.
        return cast(ClusterAttention, self.attn).cluster(self.norm1(x).detach(), hw)

    def forward(self, x: Tensor, hw: tuple[int, int], clusters: Clusters | None = None) -> Tensor:
        """Maps tokens (B, N, C) to (B, N, C).

        Args:
            x: Tokens.
            hw: Height and width of their map.
            clusters: To attend to; None where the attention needs none.
        """
        y = self.norm1(x)
        y = self.attn(y) if clusters is None else self.attn(y, hw, clusters)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x), hw))


class Stage(nn.Module):
    """A patch embedding, blocks, and a closing LayerNorm.

    Args:
        patch_embed: The patch embedding.
        blocks: The blocks.
        dim: Channels C.
        recluster_every: Blocks that share one clustering; 0 for all of them.
        with_cp: Whether to keep no activations inside the blocks and compute them again for the
            backward pass.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        blocks: Sequence[Block],
        dim: int,
        recluster_every: int,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.recluster_every = recluster_every
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Maps a map (B, C_in, height, width) to the stage's map (B, C, H, W)."""
        x, hw = self.patch_embed(x)  # (B, N, C)
        clusters: Clusters | None = None
        for i, each in enumerate(self.blocks):
            block = cast(Block, each)
            if self._clusters_anew(i):
                # Outside of the checkpoint: the backward pass need not find the clusters again.
                clusters = block.cluster(x, hw)
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, hw, clusters, use_reentrant=False)
            else:
                x = block(x, hw, clusters)
        return self.norm(x).unflatten(1, hw).permute(0, 3, 1, 2)  # channels last in memory

    def _clusters_anew(self, i: int) -> bool:
        """Whether block i finds clusters of its own, not an earlier block's."""
        if isinstance(cast(Block, self.blocks[i]).attn, SelfAttention):
            return False
        return i == 0 or (self.recluster_every > 0 and i % self.recluster_every == 0)


class ClusTR(nn.Module):
    """The ClusTR backbone, for detection, segmentation, pose and classification alike.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'pvt_v2_b0'`` to ``'pvt_v2_b4'``, or a dict
            with the keys of ``ARCHS``'s entries, each with one value for each stage.
        in_channels: Channels of the images.
        out_indices: Stages whose maps are returned, from 0 or, counted from the end, from -1; one
            number for one stage.
        frozen_stages: The last stage whose parameters are frozen; -1 for none.
        norm_eval: Whether normalisation layers stay in evaluation mode during training.
        with_cp: Whether to save memory in training by computing activations twice.
        drop_path_rate: Probability of dropping the last block's branches; it grows from 0 over
            all blocks.
        scales: Cluster counts as multiples of the coarsest, (1, 4) in the paper.
        k: Neighbours of the density estimate, the token itself included.
        qkv_bias: Whether the query, key and value projections have a bias.
        recluster_every: Blocks that share one clustering: 1 clusters in every block (the paper),
            0 once in a stage.
        cluster_window: Side of the windows that are clustered each by itself, in tokens of the
            first stage; halved from stage to stage. None for the whole image (the paper); 56 is
            the training grid of 224 x 224 images.
        fine_scope: ``'global'`` (the paper) or ``'window'``: all scales but the coarsest are
            attended to from their own window only.
        backend: Backend of the clustering, see ``clustr_mm.ops.clustering.dpc_knn``.
        crop_padding: Whether to find the padding with which images of several sizes were made one
            batch (rows and columns at the bottom and right that are exactly 0 in all channels) and
            to keep it out: images of one size run together, and the maps are padded with 0. Else
            padding joins the clusters, and an image's result depends on its batch-mates.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Sequence[int]] = 'small',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float = 0.1,
        scales: Sequence[int] = (1, 4),
        k: int = 5,
        qkv_bias: bool = True,
        recluster_every: int = 1,
        cluster_window: int | None = None,
        fine_scope: FineScope = 'global',
        backend: str | None = None,
        crop_padding: bool = False,
    ) -> None:
        super().__init__()
        facts = _arch_facts(arch)
        num_stages = len(facts['depths'])
        self.out_indices = _stage_indices(out_indices, num_stages)
        frozen_stages = integer(frozen_stages, 'frozen_stages')
        recluster_every = integer(recluster_every, 'recluster_every')
        if not -1 <= frozen_stages < num_stages:
            raise ValueError(f'frozen_stages is {frozen_stages}; use -1 to {num_stages - 1}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate is {drop_path_rate}; use 0 to below 1')
        if recluster_every < 0:
            raise ValueError(
                f'recluster_every is {recluster_every}; use 0 (once in a stage) or more'
            )
        self.arch = arch
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.crop_padding = crop_padding
        self.channels: tuple[int, ...] = facts['embed_dims']
        self.strides = tuple(4 * 2**s for s in range(num_stages))

        def attention(s: int) -> ClusterAttention | SelfAttention:
            dim, heads, reduction = (facts[f][s] for f in ('embed_dims', 'num_heads', 'reductions'))
            if reduction == 1:
                return SelfAttention(dim, heads, qkv_bias)
            window = None if cluster_window is None else max(1, cluster_window // 2**s)
            return ClusterAttention(
                dim, heads, reduction, scales, k, qkv_bias, window, fine_scope, backend
            )

        total = sum(facts['depths'])
        rates = iter([drop_path_rate * i / max(1, total - 1) for i in range(total)])
        stages = []
        for s, dim in enumerate(self.channels):
            blocks = [
                Block(dim, attention(s), facts['mlp_ratios'][s], next(rates))
                for _ in range(facts['depths'][s])
            ]
            embed = (
                PatchEmbed(in_channels, dim, patch=7, stride=4)
                if s == 0
                else PatchEmbed(self.channels[s - 1], dim, patch=3, stride=2)
            )
            stages.append(Stage(embed, blocks, dim, recluster_every, with_cp))
        self.stages = nn.ModuleList(stages)
        self.reset_parameters()
        self._freeze()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the published network does."""
        self.apply(_initialise)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Index, channels, stride and name of the stage of every map that ``forward`` returns."""
        return [
            dict(index=i, num_chs=self.channels[i], reduction=self.strides[i], module=f'stages.{i}')
            for i in self.out_indices
        ]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Which layer a parameter is in, as layer-wise decay of the learning rate asks.

        The first patch embedding is layer 0, block l of all stages layer l. A later stage's patch
        embedding goes with its first block, a stage's closing norm with its last.

        Args:
            param_name: The parameter's name in the model.
            prefix: The backbone's name in the model, with its dot. What does not begin with it
                comes after the backbone.

        Returns:
            The layer, and the number of layers.
        """
        depths = [len(cast(Stage, stage).blocks) for stage in self.stages]
        layers = sum(depths) + 2
        if not param_name.startswith(f'{prefix}stages.'):
            return layers - 1, layers
        stage, part, *rest = param_name[len(f'{prefix}stages.') :].split('.')
        before = sum(depths[: int(stage)])
        if part == 'patch_embed':
            return before + (before > 0), layers
        return before + (int(rest[0]) + 1 if part == 'blocks' else depths[int(stage)]), layers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes the maps of the stages in ``out_indices``.

        Args:
            images: (B, in_channels, height, width), any size from 1 x 1.

        Returns:
            Maps (B, C, H, W) at strides 4, 8, 16 and 32, the sizes rounded up.

        Raises:
            ValueError: If the images have another number of dimensions or channels, or none.
        """
        return self._maps(images, self.out_indices)

    def _maps(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The maps of some stages, as ``forward`` returns them."""
        _check_images(images, self.in_channels)
        if self.crop_padding:
            run = partial(self._run, indices=indices)
            return without_padding(run, images, [self.strides[i] for i in indices])
        return self._run(images, indices)

    def _run(self, x: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The maps of some stages, of images without padding."""
        maps = []
        for i, stage in enumerate(self.stages[: max(indices) + 1]):
            x = stage(x)
            if i in indices:
                # mmcv's RoIAlign reads memory in the order (C, H, W), whatever the strides say.
                maps.append(x.contiguous())
        return tuple(maps)

    @torch.no_grad()
    def cluster_maps(self, images: Tensor) -> list[list[tuple[Tensor, ...]]]:
        """The clusters that the network finds in images, as label maps.

        Args:
            images: (B, in_channels, height, width).

        Returns:
            For each stage, block and scale a map (B, H, W) int64 of cluster numbers. Stages with
            ordinary attention have an empty list.
        """
        _check_images(images, self.in_channels)
        maps: list[list[tuple[Tensor, ...]]] = []

        def look(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
            tokens, hw, clusters = arguments
            single = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
            labels = (single if each is None else each for each in clusters.labels)
            maps[-1].append(tuple(label.unflatten(1, hw) for label in labels))

        x = images
        for stage in self.stages:
            maps.append([])
            hooks = [
                block.attn.register_forward_pre_hook(look)
                for block in cast('list[Block]', cast(Stage, stage).blocks)
                if not isinstance(block.attn, SelfAttention)
            ]
            try:
                x = stage(x)
            finally:
                for hook in hooks:
                    hook.remove()
        return maps

    def train(self, mode: bool = True) -> ClusTR:
        """Sets the mode; frozen stages stay in evaluation mode, and norms if ``norm_eval``."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, (_BatchNorm, nn.LayerNorm)):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for stage in self.stages[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)
        # Stages that never run get no gradient; data-parallel training wants to know.
        for stage in self.stages[max(self.out_indices) + 1 :]:
            stage.requires_grad_(False)


@torch.fx.wrap  # one node of a symbolic trace, which has no shapes to look at
def _check_images(images: Tensor, channels: int) -> None:
    if images.dim() != 4 or images.shape[1] != channels or 0 in images.shape:
        raise ValueError(
            f'images have shape {tuple(images.shape)}; use (B, {channels}, height, width), none of '
            'them 0'
        )


def _arch_facts(arch: str | Mapping[str, Sequence[int]]) -> dict[str, Any]:
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch is {arch!r}; use one of {sorted(ARCHS)} or a dict')
        return dict(ARCHS[arch])
    keys = set(ARCHS['tiny'])
    if set(arch) != keys:
        raise ValueError(f'arch has the keys {sorted(arch)}; use {sorted(keys)}')
    lengths = {key: len(values) for key, values in arch.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f'arch has {lengths} values; give each key one value for each stage')
    facts = {}
    for key, values in arch.items():
        if key == 'mlp_ratios' and all(isinstance(value, int | float) for value in values):
            facts[key] = tuple(values)
        else:
            facts[key] = tuple(integer(value, f'arch[{key!r}]') for value in values)
        if min(facts[key]) < 1:
            raise ValueError(f'arch[{key!r}] is {values}; use values from 1')
    return facts


def _stage_indices(out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """The stages that are asked for, from 0."""
    given = [out_indices] if isinstance(out_indices, int) else out_indices
    asked = tuple(integer(i, 'out_indices') for i in given)
    if not asked or any(not -num_stages <= i < num_stages for i in asked):
        raise ValueError(
            f'out_indices is {asked}; use indices from 0 to {num_stages - 1}, or from -1 down'
        )
    indices = tuple(i % num_stages for i in asked)
    if list(indices) != sorted(set(indices)):
        raise ValueError(f'out_indices is {asked}; use each index once, ascending')
    return indices


def _initialise(module: nn.Module) -> None:
    """The published network's initialisation of one layer."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
        return
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
