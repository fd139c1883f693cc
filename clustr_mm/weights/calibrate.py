"""Keys and values of clusters from keys and values of windows.

PVTv2 (arXiv 2106.13797) attends to windows: a convolution of size and stride r, a LayerNorm, one
projection. ClusTR attends to clusters: a mean, a projection for each of two scales, whose results
are added. Where neighbours are alike the convolution of a window is a matrix and the LayerNorm
linear but for its divisor sigma: so a window's keys and values are, nearly, a linear function of
its mean token, and that is what a cluster's projection becomes (the fold). Photographs say how
large sigma is, and least squares on them (the calibration) what the fold leaves out.

Shapes in comments: N = H W tokens of an image, C channels, M clusters, W windows of r x r tokens,
h heads of d channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm.models.cluster_attention import ClusterAttention, Clusters, SelfAttention, attend
from clustr_mm.models.clustr import Block, ClusTR, Stage
from clustr_mm.ops.merging import merge_single_tokens, merge_tokens


class WindowAttention(nn.Module):
    """PVTv2's attention, where ClusTR's stands: from all tokens to windows of r x r tokens.

    Args:
        dim: Channels C.
        num_heads: Number of heads; divides ``dim``.
        reduction: Side r of a window, in tokens.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def cluster(self, x: Tensor, hw: tuple[int, int]) -> Clusters:
        """Nothing: windows need not be found. A stage asks for it."""
        return Clusters((), ())

    def windows(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Keys and values of the windows, (B, W, 2 C), of tokens (B, N, C)."""
        reduced = self.sr(x.transpose(1, 2).unflatten(2, hw))
        return self.kv(self.norm(reduced.flatten(2).transpose(1, 2)))

    def heads(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """What the heads read, before their projection, (B, N, C)."""
        return attend(self.q(x), self.windows(x, hw), self.num_heads)

    def forward(self, x: Tensor, hw: tuple[int, int], clusters: Clusters | None = None) -> Tensor:
        """Maps tokens (B, N, C) to (B, N, C)."""
        return self.proj(self.heads(x, hw))

    def window_of_token(self, hw: tuple[int, int]) -> Tensor:
        """The window of every token, (N,) int64; tokens beyond the last take the nearest."""
        r = self.reduction
        row, column = (torch.arange(n).div(r, rounding_mode='floor').clamp(max=n // r - 1)
                       for n in hw)  # fmt: skip
        return (row[:, None] * (hw[1] // r) + column).flatten()

    def means(self) -> tuple[Tensor, Tensor]:
        """The convolution where all tokens of a window are one: matrix (C, C), bias (C,)."""
        bias = cast(Tensor, self.sr.bias)
        return self.sr.weight.double().sum((2, 3)), bias.double()

    def variance(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """The variances that the LayerNorm would find in the windows' mean tokens, (B, W)."""
        matrix, bias = self.means()
        mean = F.avg_pool2d(x.double().transpose(1, 2).unflatten(2, hw), self.reduction)
        return (mean.flatten(2).transpose(1, 2) @ matrix.T + bias).var(-1, unbiased=False)

    def expected_variance(self, norm: nn.LayerNorm) -> Tensor:
        """The same, of tokens that a norm leaves spread as its weight and bias say."""
        matrix, bias = self.means()
        centre = matrix @ norm.bias.double() + bias
        spread = matrix * norm.weight.double()
        squares = (centre - centre.mean()).square().sum() + (spread - spread.mean(0)).square().sum()
        return squares / len(bias)

    def fold(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as a linear function of a window's mean token.

        Args:
            variance: What the LayerNorm divides by the root of, a scalar.

        Returns:
            Weight (2 C, C) and bias (2 C,), float64.
        """
        matrix, bias = self.means()
        scale = self.norm.weight.double() / (variance + self.norm.eps).sqrt()
        kv = self.kv.weight.double()
        weight = kv @ (scale[:, None] * (matrix - matrix.mean(0)))
        constant = kv @ (scale * (bias - bias.mean()) + self.norm.bias.double())
        return weight, constant + self.kv.bias.double()


@torch.no_grad()
def calibrate(
    student: ClusTR,
    teacher: ClusTR,
    images: Sequence[Tensor] = (),
    full: bool = False,
) -> Iterator[None]:
    """Gives a ClusTR's keys and values those of its teacher, block by block from the image on.

    Each block sees what the blocks before it, done already, make of the images, one image after
    the other: how they come in batches changes nothing.

    Args:
        student: Changed in place: ``attn.kvs`` of all blocks with clusters. Their token weights
            are 0, and all else is the teacher's.
        teacher: The same body with ``WindowAttention`` in those blocks.
        images: Each (channels, height, width), 32 x 32 or larger. Without any, tokens are taken
            to be as spread as the norm before the attention says.
        full: Whether keys and values are also fitted, by least squares: first to the mean of the
            teacher's over the windows of a cluster's tokens, then the values alone to what the
            teacher's heads read. Each fit stays as near the fold, then the first fit, as images
            that are held out from it want it to.

    Yields:
        After each block, for who shows how far it is.
    """
    inputs = theirs = [image[None] for image in images]
    for stage, other in zip(student.stages, teacher.stages, strict=True):
        stage, other = cast(Stage, stage), cast(Stage, other)
        if isinstance(cast(Block, stage.blocks[0]).attn, SelfAttention):
            return  # from here on the two are the same
        embedded = [stage.patch_embed(x) for x in inputs]
        tokens, sizes = [x for x, _ in embedded], [hw for _, hw in embedded]
        targets = [other.patch_embed(x)[0] for x in theirs] if full else []
        for block, model in zip(stage.blocks, other.blocks, strict=True):
            block, model = cast(Block, block), cast(Block, model)
            attention = cast(ClusterAttention, block.attn)
            windows = cast(WindowAttention, model.attn)
            normed = [block.norm1(x) for x in tokens]
            _fold(attention, windows, block.norm1, normed, sizes)
            clusters = [attention.cluster(x, hw) for x, hw in zip(normed, sizes, strict=True)]
            if full:
                seen = [model.norm1(x) for x in targets]
                _fit_clusters(attention, windows, normed, clusters, seen, sizes)
                _fit_values(attention, windows, normed, clusters, seen, sizes)
                targets = [
                    model(x, hw, windows.cluster(x, hw))
                    for x, hw in zip(targets, sizes, strict=True)
                ]
            tokens = [block(*each) for each in zip(tokens, sizes, clusters, strict=True)]
            yield
        inputs = [stage.norm(x).mT.unflatten(2, hw) for x, hw in zip(tokens, sizes, strict=True)]
        theirs = [other.norm(x).mT.unflatten(2, hw) for x, hw in zip(targets, sizes, strict=False)]


def _fold(
    attention: ClusterAttention,
    windows: WindowAttention,
    norm: nn.LayerNorm,
    tokens: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Both scales get the fold, with sigma of these tokens, or of the norm before them."""
    variance = windows.expected_variance(norm)
    if tokens:
        found = [windows.variance(x, hw) for x, hw in zip(tokens, sizes, strict=True)]
        variance = torch.cat([each.flatten() for each in found]).mean()
    weight, bias = windows.fold(variance)
    for kv in attention.kvs:
        _set(cast(nn.Linear, kv), weight, bias, len(attention.kvs))


def _fit_clusters(
    attention: ClusterAttention,
    windows: WindowAttention,
    tokens: Sequence[Tensor],
    clusters: Sequence[Clusters],
    seen: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Fits each scale to the mean of the teacher's keys and values over a cluster's tokens."""
    scales = len(attention.kvs)
    for scale, kv in enumerate(attention.kvs):
        kv, fit = cast(nn.Linear, kv), _Ridge()
        for x, found, y, hw in zip(tokens, clusters, seen, sizes, strict=True):
            of_tokens = windows.windows(y, hw)[:, windows.window_of_token(hw)]  # (1, N, 2 C)
            fit.add(_merge(x, found, scale)[0], _merge(of_tokens, found, scale)[0])
        start = kv.weight.double()
        start[len(start) // 2 :] *= scales  # as if it were the only scale
        _set(kv, *fit.solve(start), scales)


def _fit_values(
    attention: ClusterAttention,
    windows: WindowAttention,
    tokens: Sequence[Tensor],
    clusters: Sequence[Clusters],
    seen: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Fits the values of both scales to what the teacher's heads read, the keys as they are.

    With the attention's weights fixed a head reads a linear function of the cluster tokens.
    """
    heads, kvs = attention.num_heads, [cast(nn.Linear, kv) for kv in attention.kvs]
    channels = kvs[0].in_features
    fit = _Ridge()
    for x, found, y, hw in zip(tokens, clusters, seen, sizes, strict=True):
        queries = attention.q(x)[0].unflatten(-1, (heads, -1)).transpose(0, 1)  # (h, N, d)
        read = []
        for scale, kv in enumerate(kvs):
            merged = _merge(x, found, scale)[0]  # (M, C)
            keys = kv(merged)[:, :channels].unflatten(-1, (heads, -1)).permute(1, 2, 0)
            logits = queries @ keys / queries.shape[-1] ** 0.5  # (h, N, M)
            read.append(logits.softmax(-1) @ merged)  # (h, N, C)
        target = windows.heads(y, hw)[0].unflatten(-1, (heads, -1)).transpose(0, 1)  # (h, N, d)
        fit.add(torch.cat(read, -1), target)
    start = torch.cat([kv.weight.double()[channels:] for kv in kvs], 1)  # (C, scales C)
    weight, bias = fit.solve(start.unflatten(0, (heads, -1)))
    for kv, of_scale in zip(kvs, weight.flatten(0, 1).split(channels, 1), strict=True):
        kv.weight[channels:] = of_scale.to(kv.weight.dtype)
        kv.bias[channels:] = (bias.flatten() / len(kvs)).to(kv.bias.dtype)


def _merge(x: Tensor, clusters: Clusters, scale: int) -> Tensor:
    """The plain means of tokens (1, N, C) over the clusters of a scale, (1, M, C)."""
    labels, zero = clusters.labels[scale], x.new_zeros(x.shape[:2])
    if labels is None:
        return merge_single_tokens(x, zero)
    return merge_tokens(x, labels, clusters.num_clusters[scale], zero)


def _set(kv: nn.Linear, weight: Tensor, bias: Tensor, scales: int) -> None:
    """Sets a scale's projection; the scales' values are added, so each has its part of them."""
    half = len(bias) // 2
    share = torch.cat([bias.new_ones(half), bias.new_full((half,), 1 / scales)])
    kv.weight.copy_(weight * share[:, None])
    kv.bias.copy_(bias * share)


class _Ridge:
    """Least squares that stay near a start, by as much as images that were held out ask for.

    Where attention is flat, all tokens of an image are one sample: few images make many tokens,
    and a fit to them that does harm on others.
    """

    parts = 4  # of the images; each is held out in turn
    # In units of the features' mean variance; the last leaves the start as it is.
    penalties = (1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e6)

    def __init__(self) -> None:
        self.images = 0
        # Of each part: samples, squares and products of features and targets, and their sums.
        self.sums: list[list[Tensor]] = [[] for _ in range(self.parts)]

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Adds an image's L samples: features (..., L, F), targets (..., L, T)."""
        x, t = features.double(), targets.double()
        sums = [x.new_tensor(x.shape[-2]), x.mT @ x, x.mT @ t, x.sum(-2), t.sum(-2)]
        part = self.images % self.parts
        old = self.sums[part]
        self.sums[part] = [a + b for a, b in zip(old, sums, strict=True)] if old else sums
        self.images += 1

    def solve(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """The weight (..., T, F) and bias (..., T) near ``start``, a weight (..., T, F)."""
        total = [torch.stack(each).sum(0) for each in zip(*self.sums, strict=True)]
        rest = [[a - b for a, b in zip(total, part, strict=True)] for part in self.sums]

        def held_out(penalty: float) -> float:
            fits = (_fit(sums, start, penalty) for sums in rest)
            return sum(_error(part, *fit) for part, fit in zip(self.sums, fits, strict=True))

        return _fit(total, start, min(self.penalties, key=held_out))


def _fit(sums: Sequence[Tensor], start: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The weight and bias of one penalty."""
    squares, products, mean, target = (each / sums[0] for each in sums[1:])
    squares = squares - mean[..., :, None] * mean[..., None, :]
    products = products - mean[..., :, None] * target[..., None, :]
    diagonal = squares.diagonal(dim1=-2, dim2=-1)
    spread = diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    change = torch.linalg.solve(
        squares + (penalty * spread).diag_embed(), products - squares @ start.mT
    )
    weight = start + change.mT
    return weight, target - (weight @ mean[..., None])[..., 0]


def _error(sums: Sequence[Tensor], weight: Tensor, bias: Tensor) -> float:
    """The squared error of samples, but for a constant."""
    samples, squares, products, features, targets = sums
    linear = (weight @ features[..., None])[..., 0]
    error = ((weight @ squares) * weight).sum() - 2 * (products.mT * weight).sum()
    return (error + (bias * (2 * linear - 2 * targets + samples * bias)).sum()).item()
