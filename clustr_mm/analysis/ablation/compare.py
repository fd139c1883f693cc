"""What a setting of the backbone costs, and how far it moves the numbers from the exact form.

The shift of a block's attention is |A'(x) - A(x)| / |A(x)|, with A the exact form's attention, A'
the setting's, x the block's input in the exact run (so that a block is not charged with what moved
before it), and |.| the Euclidean norm over all tokens and channels of an image. The shift of the
maps is the same quotient of the backbone's outputs, each from its own run. The shift from dense
attention is that of A' from itself with every token a cluster of its own at each of its scales.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from clustr_mm.analysis.ablation.groupings import RegroupedAttention, dense
from clustr_mm.analysis.ablation.settings import DENSE
from clustr_mm.analysis.ablation.statistics import (
    ClusterStatistics,
    cluster_statistics,
    mean_statistics,
)
from clustr_mm.analysis.flops import count_macs
from clustr_mm.analysis.peers import EXACT
from clustr_mm.analysis.speed import peak_memory, time_call
from clustr_mm.models import ClusterAttention, Clusters, ClusTR
from clustr_mm.models.clustr import Stage


@dataclass(frozen=True)
class Row:
    """A setting's line of the table. Shifts are fractions: 0.1 is 10 %.

    Attributes:
        setting: Its name.
        gmac: 10^9 multiply-adds of an image, clustering included, as torch's FlopCounterMode
            counts them; the mean over images.
        seconds: Of an image, of the processor on a CPU and by the clock on a GPU; the mean over
            images of the median over rounds.
        ratio: Median over images and rounds of the time as a multiple of the exact form's in the
            same round.
        peak_mib: Largest peak memory of a forward pass above its input; None where unknown.
        attention: For each stage with cluster attention, the mean and the worst shift of its
            blocks' attention, over images.
        to_dense: The same from dense attention with the setting's own scales; None where dense
            attention is not among the settings.
        maps: For each stage the mean shift of its map, over images.
        clusters: For each stage with cluster attention and each of the setting's scales, what its
            clusters look like, the mean over blocks and images.
    """

    setting: str
    gmac: float
    seconds: float
    ratio: float
    peak_mib: float | None
    attention: tuple[tuple[float, float], ...]
    to_dense: tuple[tuple[float, float], ...] | None
    maps: tuple[float, ...]
    clusters: tuple[tuple[ClusterStatistics, ...], ...]


@dataclass
class Comparison:
    """What the settings' attentions do with the same tokens.

    Attributes:
        shifts: Shifts by reference and setting, [stage with cluster attention][block].
        clusters: What the clusters look like by setting, [stage][block][scale].
    """

    shifts: dict[str, dict[str, list[list[float]]]]
    clusters: dict[str, list[list[tuple[ClusterStatistics, ...]]]]


@dataclass
class _Record:
    """What was measured of a setting."""

    macs: list[int] = field(default_factory=list)  # [image]
    seconds: list[list[float]] = field(default_factory=list)  # [image][round]
    peaks: list[float | None] = field(default_factory=list)
    attention: list[list[list[float]]] = field(default_factory=list)  # [image][stage][block]
    to_dense: list[list[list[float]]] = field(default_factory=list)  # [image][stage][block]
    maps: list[list[float]] = field(default_factory=list)  # [image][stage]
    # [image][stage][block][scale]
    clusters: list[list[list[tuple[ClusterStatistics, ...]]]] = field(default_factory=list)


class Ablation:
    """Compares backbones with the exact form, image by image.

    Args:
        models: Backbones by setting, ``'exact'`` among them; see ``build_settings``.
        rounds: How often each runs on an image, one after the other.

    Raises:
        ValueError: If there is no exact form, or no round.
    """

    def __init__(self, models: Mapping[str, ClusTR], rounds: int = 1) -> None:
        if EXACT not in models:
            raise ValueError(f'models are {sorted(models)}; the {EXACT!r} form must be among them')
        if rounds < 1:
            raise ValueError(f'rounds is {rounds}; use at least 1')
        self.models = dict(models)
        self.rounds = rounds
        self._records = {name: _Record() for name in self.models}
        self._macs: dict[tuple[int, int], dict[str, int]] = {}  # by height and width

    @torch.no_grad()
    def add(self, image: Tensor) -> None:
        """Runs every setting on an image.

        Args:
            image: (1, 3, height, width), where the backbones are.
        """
        # A GPU's kernels depend on the size; a CPU needs its threads and libraries loaded.
        small = image if image.is_cuda else image[..., :64, :64].contiguous()
        for model in self.models.values():
            model(small)
        hw = (image.shape[2], image.shape[3])
        if hw not in self._macs:
            self._macs[hw] = {name: _count(model, *hw) for name, model in self.models.items()}
        maps: dict[str, tuple[Tensor, ...]] = {}
        for record in self._records.values():
            record.seconds.append([])
        for _ in range(self.rounds):
            for name, model in self.models.items():
                maps.pop(name, None)
                (maps[name], seconds), peak = peak_memory(partial(_run, model, image), image.device)
                self._records[name].seconds[-1].append(seconds)
                self._records[name].peaks.append(peak)
        references = [name for name in (EXACT, DENSE) if name in self.models]
        comparison = compare_blocks(self.models, image, references)
        shifts = comparison.shifts
        for name, record in self._records.items():
            record.macs.append(self._macs[hw][name])
            record.clusters.append(comparison.clusters[name])
            record.maps.append(
                [relative_difference(*pair) for pair in zip(maps[name], maps[EXACT], strict=True)]
            )
            record.attention.append(shifts[EXACT][name])
            if DENSE in shifts:
                record.to_dense.append(shifts[DENSE][name])

    def rows(self) -> list[Row]:
        """The table so far, a line a setting.

        Raises:
            ValueError: If no image was added.
        """
        if not self._records[EXACT].macs:
            raise ValueError('no image was measured; add one first')
        return [self._row(name, record) for name, record in self._records.items()]

    def _row(self, name: str, record: _Record) -> Row:
        pairs = zip(chain(*record.seconds), chain(*self._records[EXACT].seconds), strict=True)
        known = [peak for peak in record.peaks if peak is not None]
        return Row(
            setting=name,
            gmac=statistics.fmean(record.macs) / 1e9,
            seconds=statistics.fmean(map(statistics.median, record.seconds)),
            ratio=statistics.median(own / max(exact, 1e-9) for own, exact in pairs),
            peak_mib=max(known, default=None),
            attention=_mean_and_worst(record.attention),
            to_dense=_mean_and_worst(record.to_dense) if record.to_dense else None,
            maps=tuple(statistics.fmean(each) for each in zip(*record.maps, strict=True)),
            clusters=tuple(
                tuple(
                    mean_statistics(scale)
                    for scale in zip(*(block for image in images for block in image), strict=True)
                )
                for images in zip(*record.clusters, strict=True)
            ),
        )


def _run(model: ClusTR, image: Tensor) -> tuple[tuple[Tensor, ...], float]:
    """Maps, and seconds: of the processor on a CPU, by the clock on a GPU."""
    maps: list[tuple[Tensor, ...]] = []
    wall, processor = time_call(lambda: maps.append(model(image)), image.device)
    return maps[0], wall if image.is_cuda else processor


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|, Euclidean, over all elements; 0 where both are zero."""
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    difference, size = norm(value - reference).item(), norm(reference).item()
    return difference / size if size else (float('inf') if difference else 0.0)


@torch.no_grad()
def compare_blocks(
    models: Mapping[str, ClusTR], image: Tensor, references: Sequence[str] = (EXACT,)
) -> Comparison:
    """Runs every setting's attention on the tokens of the exact form's run, block by block.

    A setting that clusters less often than in every block takes the clusters that it would have
    found in the exact run's tokens of an earlier block.

    Args:
        models: Backbones by setting, ``'exact'`` among them, with the same blocks.
        image: (1, 3, height, width).
        references: What shifts are measured from: ``'exact'``, ``'grouping=dense'``.

    Returns:
        Shifts and clusters.
    """
    exact = models[EXACT]
    places = list(_cluster_attentions(exact))
    stages = sorted({stage for stage, _, _ in places})
    comparison = Comparison(
        {reference: {name: [[] for _ in stages] for name in models} for reference in references},
        {name: [[] for _ in stages] for name in models},
    )
    current: dict[str, Clusters] = {}  # what each setting uses in the present block

    def compare(
        stage: int, index: int, module: nn.Module, arguments: tuple[Any, ...], exact_out: Tensor
    ) -> None:
        x, hw, clusters = arguments
        found = {_grouping_of(module): clusters}
        seen: dict[int, tuple[ClusterStatistics, ...]] = {}
        of_dense: dict[int, Tensor] = {}  # dense attention by the number of scales
        row = stages.index(stage)
        for name, model in models.items():
            part = cast(Stage, model.stages[stage])
            attention = cast(ClusterAttention | RegroupedAttention, part.blocks[index].attn)
            every = part.recluster_every
            if index == 0 or (every and index % every == 0):
                # Settings that differ only in what they do with the clusters share them.
                key = _grouping_of(attention)
                if key not in found:
                    found[key] = attention.cluster(x, hw)
                current[name] = found[key]
            own = current[name]
            out = exact_out if name == EXACT else attention(x, hw, own)
            if id(own) not in seen:
                seen[id(own)] = tuple(
                    cluster_statistics(labels, count, hw)
                    for labels, count in zip(own.labels, own.num_clusters, strict=True)
                )
            comparison.clusters[name][row].append(seen[id(own)])
            for reference, shifts in comparison.shifts.items():
                target = exact_out
                if reference == DENSE:
                    scales = len(own.num_clusters)
                    if scales not in of_dense:
                        # Not by calling the module: the exact form's would call this again.
                        everywhere = dense(x, own.num_clusters, hw)
                        of_dense[scales] = attention.forward(x, hw, everywhere)
                    target = of_dense[scales]
                shifts[name][row].append(relative_difference(out, target))

    hooks = [
        attention.register_forward_hook(partial(compare, stage, index))
        for stage, index, attention in places
    ]
    try:
        exact(image)
    finally:
        for hook in hooks:
            hook.remove()
    return comparison


def _count(model: ClusTR, height: int, width: int) -> int:
    """Multiply-adds of a forward pass of one image, as torch counts them."""
    # Counting moves the parameters to the meta device. Torch's count knows the products of the
    # other groupings too.
    parts = count_macs(copy.deepcopy(model), height, width)
    return sum(kinds.total() for kinds in parts.values())


def _mean_and_worst(shifts: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[float, float], ...]:
    """Of [image][stage][block] shifts, each stage's mean and largest."""
    of_stages = (
        [shift for blocks in images for shift in blocks] for images in zip(*shifts, strict=True)
    )
    return tuple((statistics.fmean(each), max(each)) for each in of_stages)


def _cluster_attentions(model: ClusTR) -> Iterator[tuple[int, int, ClusterAttention]]:
    """Yields (stage, block, attention) of every cluster attention."""
    for stage, part in enumerate(model.stages):
        for index, block in enumerate(cast(Stage, part).blocks):
            if isinstance(block.attn, ClusterAttention):
                yield stage, index, block.attn


def _grouping_of(attention: nn.Module) -> tuple[Any, ...]:
    """What decides which clusters an attention finds: equal for two that find the same."""
    if isinstance(attention, RegroupedAttention):
        inner = attention.attention
        return attention.grouping, inner.reduction, inner.scales
    names = ('reduction', 'scales', 'k', 'cluster_window', 'backend')
    return 'density peaks', *(getattr(attention, name) for name in names)
