"""What a model computes for one image, counted whole and in three ways that check each other.

The unit is one MAC: a multiplication and an addition, what papers of this field call a FLOP.
Element-wise work (norms, GELU, softmax, sums of branches, pooling) is not counted, as is usual.

The kinds, with N tokens of C channels, M clusters of a scale, and k, v its keys and values:

    linear          linear layers and products of two activations outside of attention
    convolution     convolutions
    attention       q k^T and the sum of v, 2 N M C, for the coarsest scale and for dense attention
    fine_attention  the same for all other scales
    distances       of all tokens to each other, N^2 C, for density and for the distance to the
                    nearest denser token (the few tokens that need a second search are left out)
    assignment      distances of all tokens to the centres, N M C with the largest M below N
    merge           weighted sums of tokens and of weights, N (C + 1) a scale with M below N

The selection of the nearest neighbours is comparisons, one for each distance, and counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from clustr_mm.analysis.networks import Network
from clustr_mm.models import ClusterAttention, ClusTR, SelfAttention
from clustr_mm.models.clustr import Block, Stage
from clustr_mm.ops.clustering import split_map

# What the authors' counter saw: their printed 2.15, 4.8 and 7.48 G are these kinds' sum.
PUBLISHED_KINDS = ('linear', 'convolution', 'attention')


@dataclass
class Macs:
    """Multiply-adds by kind (see the module's docstring)."""

    linear: int = 0
    convolution: int = 0
    attention: int = 0
    fine_attention: int = 0
    distances: int = 0
    assignment: int = 0
    merge: int = 0

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return sum(asdict(self).values())

    @property
    def published(self) -> int:
        """The sum of the kinds that the paper's figures hold."""
        return sum(getattr(self, kind) for kind in PUBLISHED_KINDS)

    def __add__(self, other: Macs) -> Macs:
        return Macs(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Count:
    """What one forward pass computes.

    Attributes:
        parts: Multiply-adds by part of the model: ``'stage 1'`` and so on (``'backbone'`` for
            other backbones), ``'neck'`` and ``'heads'``, as far as there are such.
        dispatched: The sum, as torch's FlopCounterMode counts it.
        formula: The backbone's sum by the closed formula; None for other backbones than ClusTR, and
            for a ClusTR with other attention than its own.
        comparisons: Comparisons that the selection of nearest neighbours makes.
        activations: Elements of the outputs of convolutions, linear layers and attention.
    """

    parts: dict[str, Macs] = field(default_factory=dict)
    dispatched: int = 0
    formula: int | None = None
    comparisons: int = 0
    activations: int = 0

    @property
    def backbone(self) -> Macs:
        """The backbone's multiply-adds."""
        inside = (v for k, v in self.parts.items() if k.startswith(('stage', 'backbone')))
        return sum(inside, Macs())

    @property
    def whole(self) -> Macs:
        """The model's multiply-adds."""
        return sum(self.parts.values(), Macs())


def clustering_macs(tokens: int, channels: int, num_clusters: Sequence[int]) -> tuple[int, int]:
    """Multiply-adds of DPC-KNN for one image.

    Args:
        tokens: N.
        channels: C.
        num_clusters: Cluster counts.

    Returns:
        Those of the distances and of the assignment.
    """
    largest = max((count for count in num_clusters if count < tokens), default=0)
    return tokens**2 * channels, tokens * largest * channels


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """What FlopCounterMode must be told to count ClusTR whole, in FLOPs (2 a multiply-add).

    ``FlopCounterMode(custom_mapping=flop_formulas())`` counts a forward pass on the meta device, or
    on a CPU where the native backend runs. Without, it counts neither the clustering nor (on a CPU)
    attention.

    Returns:
        Formulas by operator.
    """

    def attention(q: Sequence[int], k: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return 4 * math.prod(q) * k[-2]

    def clustering(x: Sequence[int], counts: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return 2 * x[0] * sum(clustering_macs(x[1], x[2], counts))

    def merge(
        total: Sequence[int], dim: int, index: Any, source: Sequence[int], *args: Any, **kwargs: Any
    ) -> int:
        return 2 * math.prod(source)

    return {
        torch.ops.clustr_mm.dpc_knn_native: clustering,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten.index_add: merge,
    }


class _Calls(TorchFunctionMode):
    """Counts the calls that a model's code makes, by part and kind."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()
        self.part = ['heads']  # the innermost one that runs is the last
        self.attended: int | None = None  # calls of a cluster attention so far; None outside

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        macs = self.count.parts[self.part[-1]]
        if func is F.linear:
            macs.linear += out.numel() * args[0].shape[-1]
        elif func in (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__):
            macs.linear += out.numel() * args[0].shape[-1]
        elif func in (F.conv1d, F.conv2d, F.conv3d):
            macs.convolution += out.numel() * args[1][0].numel()
        elif func in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
            macs.convolution += args[0].numel() * args[1][0].numel()
        elif func is F.scaled_dot_product_attention:
            # The coarsest scale is the first, in one call.
            kind = 'fine_attention' if self.attended else 'attention'
            if self.attended is not None:
                self.attended += 1
            products = 2 * args[0].numel() * args[1].shape[-2]
            setattr(macs, kind, getattr(macs, kind) + products)
        elif func is torch.ops.clustr_mm.dpc_knn_native:
            batch, tokens, channels = args[0].shape
            distances, assignment = clustering_macs(tokens, channels, args[1])
            macs.distances += batch * distances
            macs.assignment += batch * assignment
            self.count.comparisons += batch * tokens**2
            return out
        elif func is Tensor.index_add:
            macs.merge += args[3].numel()
            return out
        else:
            return out
        self.count.activations += out.numel()
        return out

    @contextmanager
    def watch(self, parts: Mapping[str, nn.Module], backbone: nn.Module) -> Iterator[None]:
        """Follows which part of the model runs, and which scale its attention is at."""
        with ExitStack() as stack:
            for name, module in parts.items():
                enter = module.register_forward_pre_hook(lambda *_, n=name: self.part.append(n))
                leave = module.register_forward_hook(lambda *_: self._leave())
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            for attention in backbone.modules():
                if not isinstance(attention, ClusterAttention):
                    continue
                begin = attention.register_forward_pre_hook(lambda *_: self._attend(0))
                end = attention.register_forward_hook(lambda *_: self._attend(None))
                stack.callback(begin.remove)
                stack.callback(end.remove)
            yield

    def _leave(self) -> None:
        self.part.pop()

    def _attend(self, calls: int | None) -> None:
        self.attended = calls


def count_macs(model: Any, height: int, width: int) -> Count:
    """Counts a forward pass of one image, on the meta device: no number is computed.

    Args:
        model: A backbone, or a model of mmdet, mmseg, mmpose or mmpretrain. Its parameters move to
            the meta device, so it is of no further use. A two-stage detector's heads are counted
            for as many proposals and detections as its ``test_cfg`` allows; auxiliary heads, which
            only training uses, are not counted.
        height: Rows of pixels.
        width: Columns of pixels.

    Returns:
        The counts.

    Raises:
        ValueError: If the shape is none.
    """
    if height < 1 or width < 1:
        raise ValueError(f'the shape is {height} x {width}; use at least 1 x 1')
    network = Network(model).to('meta').eval()
    backbone = getattr(model, 'backbone', model)
    if isinstance(backbone, ClusTR):
        parts = {f'stage {i}': stage for i, stage in enumerate(backbone.stages, 1)}
        for module in backbone.modules():
            if isinstance(module, ClusterAttention):
                module.backend = None
    else:
        parts = {'backbone': backbone}
    if isinstance(getattr(model, 'neck', None), nn.Module):
        parts['neck'] = model.neck
    image = torch.empty(1, 3, height, width, device='meta')
    calls = _Calls()
    calls.count.parts = {name: Macs() for name in (*parts, 'heads')}
    torch_counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with torch.no_grad(), calls.watch(parts, backbone), torch_counter, calls:
        network(image)
    count = calls.count
    count.parts = {k: v for k, v in count.parts.items() if v.total}
    count.dispatched = torch_counter.get_total_flops() // 2
    if isinstance(backbone, ClusTR) and all(
        isinstance(module.attn, (ClusterAttention, SelfAttention))
        for module in backbone.modules()
        if isinstance(module, Block)
    ):
        count.formula = closed_formula(backbone, height, width).total
    return count


def closed_formula(backbone: ClusTR, height: int, width: int) -> Macs:
    """The backbone's multiply-adds from its settings and the image's size alone.

    Args:
        backbone: The backbone.
        height: Rows of pixels.
        width: Columns of pixels.

    Returns:
        The counts, of the stages that run.
    """
    total = Macs()
    channels_in, hw = backbone.in_channels, (height, width)
    for i in range(max(backbone.out_indices) + 1):
        stage = cast(Stage, backbone.stages[i])
        conv = stage.patch_embed.proj
        hw = (-(-hw[0] // conv.stride[0]), -(-hw[1] // conv.stride[1]))
        tokens, channels = hw[0] * hw[1], conv.out_channels
        total.convolution += tokens * channels * channels_in * math.prod(conv.kernel_size)
        depth = len(stage.blocks)
        every = stage.recluster_every or depth
        for number, block in enumerate(stage.blocks):
            clusters_anew = number % every == 0
            total += _block_macs(cast(Block, block), channels, hw, clusters_anew)
        channels_in = channels
    return total


def _block_macs(block: Block, channels: int, hw: tuple[int, int], clusters_anew: bool) -> Macs:
    tokens = hw[0] * hw[1]
    hidden = block.mlp.fc1.out_features
    macs = Macs(
        # the MLP's two layers, queries, the closing projection
        linear=2 * tokens * channels * (hidden + channels),
        convolution=9 * tokens * hidden,
    )
    attn = block.attn
    if not isinstance(attn, ClusterAttention):
        macs.linear += 2 * tokens * channels**2
        macs.attention = 2 * tokens**2 * channels
        return macs
    counts = attn.num_clusters(tokens)
    # (windows, tokens n of each, clusters m of each at every scale)
    windows = [(1, tokens, counts)]
    if attn.cluster_window is not None:
        split = split_map(*hw, attn.cluster_window, counts, torch.device('cpu'))
        counts = split.num_clusters
        windows = [
            (len(g.tokens), g.tokens.shape[1], tuple(c.shape[1] for c in g.clusters))
            for g in split.groups
        ]
    merged = [count < tokens for count in counts]
    for number, n, shares in windows:
        asked = [m for m, has_labels in zip(shares, merged, strict=True) if has_labels]
        if clusters_anew and asked:
            distances, assignment = clustering_macs(n, channels, asked)
            macs.distances += number * distances
            macs.assignment += number * assignment
        if attn.fine_scope == 'window':
            macs.fine_attention += 2 * number * n * sum(shares[1:]) * channels
    macs.linear += tokens * channels + 2 * sum(counts) * channels**2  # weights; keys and values
    macs.attention = 2 * tokens * counts[0] * channels
    if attn.fine_scope == 'global':
        macs.fine_attention = 2 * tokens * sum(counts[1:]) * channels
    macs.merge = sum(merged) * tokens * (channels + 1)
    return macs
