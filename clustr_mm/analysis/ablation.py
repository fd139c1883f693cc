"""What a setting of the backbone costs, and how far it moves the numbers from the exact form.

The shift of a block's attention is |A'(x) - A(x)| / |A(x)|, with A the exact form's attention, A'
the setting's, x the block's input in the exact run (so that a block is not charged with what moved
before it), and |.| the Euclidean norm over all tokens and channels of an image. The shift of the
maps is the same quotient of the backbone's outputs, each from its own run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from clustr_mm.analysis.groupings import RegroupedAttention
from clustr_mm.analysis.measure import Cost, measure
from clustr_mm.analysis.settings import DENSE, EXACT
from clustr_mm.models import ClusterAttention, Clusters, ClusTR
from clustr_mm.models.clustr import Stage


@dataclass(frozen=True)
class Row:
    """A setting's line of the table. Shifts are fractions: 0.1 is 10 %.

    Attributes:
        setting: Its name.
        seconds: Time of an image, the mean over images of the median over rounds; see ``Cost``.
        ratio: Median over images and rounds of the time as a multiple of the exact form's in the
            same round.
        peak_mib: Largest peak memory of a forward pass above its input; None where unknown.
        attention: For each stage with cluster attention, the mean and the worst shift of its
            blocks' attention, over images.
        to_dense: The same with dense attention in the exact form's place; None where dense
            attention is not among the settings.
        maps: For each stage the mean shift of its map, over images.
    """

    setting: str
    seconds: float
    ratio: float
    peak_mib: float | None
    attention: tuple[tuple[float, float], ...]
    to_dense: tuple[tuple[float, float], ...] | None
    maps: tuple[float, ...]


@dataclass
class _Record:
    """What was measured of a setting."""

    costs: list[list[Cost]] = field(default_factory=list)  # [image][round]
    attention: list[list[list[float]]] = field(default_factory=list)  # [image][stage][block]
    to_dense: list[list[list[float]]] = field(default_factory=list)  # [image][stage][block]
    maps: list[list[float]] = field(default_factory=list)  # [image][stage]


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
        maps: dict[str, tuple[Tensor, ...]] = {}
        for record in self._records.values():
            record.costs.append([])
        for _ in range(self.rounds):
            for name, model in self.models.items():
                maps.pop(name, None)
                maps[name], cost = measure(partial(model.__call__, image), image.device)
                self._records[name].costs[-1].append(cost)
        references = [name for name in (EXACT, DENSE) if name in self.models]
        shifts = attention_shifts(self.models, image, references)
        for name, record in self._records.items():
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
        exact = self._records[EXACT].costs
        if not exact:
            raise ValueError('no image was measured; add one first')
        return [self._row(name, record, exact) for name, record in self._records.items()]

    def _row(self, name: str, record: _Record, exact: Sequence[Sequence[Cost]]) -> Row:
        peaks = [cost.peak_mib for costs in record.costs for cost in costs]
        ratios = [
            cost.seconds / max(reference.seconds, 1e-9)
            for costs, references in zip(record.costs, exact, strict=True)
            for cost, reference in zip(costs, references, strict=True)
        ]
        return Row(
            setting=name,
            seconds=statistics.fmean(
                statistics.median(cost.seconds for cost in costs) for costs in record.costs
            ),
            ratio=statistics.median(ratios),
            peak_mib=None if None in peaks else max(peak for peak in peaks if peak is not None),
            attention=_mean_and_worst(record.attention),
            to_dense=_mean_and_worst(record.to_dense) if record.to_dense else None,
            maps=tuple(statistics.fmean(each) for each in zip(*record.maps, strict=True)),
        )


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|, Euclidean, over all elements; 0 where both are zero."""
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    difference, size = norm(value - reference).item(), norm(reference).item()
    return difference / size if size else (float('inf') if difference else 0.0)


@torch.no_grad()
def attention_shifts(
    models: Mapping[str, ClusTR], image: Tensor, references: Sequence[str] = (EXACT,)
) -> dict[str, dict[str, list[list[float]]]]:
    """How far every setting's attention is from a reference's on the same tokens.

    The tokens are those of the exact form's run. A setting that clusters less often than in every
    block takes the clusters that it would have found in the exact run's tokens of an earlier block.

    Args:
        models: Backbones by setting, ``'exact'`` among them, with the same blocks.
        image: (1, 3, height, width).
        references: The settings to compare with.

    Returns:
        Shifts by reference and setting: for each stage with cluster attention one a block.
    """
    exact = models[EXACT]
    places = list(_cluster_attentions(exact))
    stages = sorted({stage for stage, _, _ in places})
    shifts: dict[str, dict[str, list[list[float]]]] = {
        reference: {name: [[] for _ in stages] for name in models} for reference in references
    }
    current: dict[str, Clusters] = {}  # what each setting uses in the present block

    def compare(
        stage: int, index: int, module: nn.Module, arguments: tuple[Any, ...], exact_out: Tensor
    ) -> None:
        x, hw, clusters = arguments
        found = {_grouping_of(module): clusters}
        outs: dict[str, Tensor] = {}
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
            outs[name] = exact_out if name == EXACT else attention(x, hw, current[name])
        for reference, of_reference in shifts.items():
            for name, out in outs.items():
                shift = relative_difference(out, outs[reference])
                of_reference[name][stages.index(stage)].append(shift)

    hooks = [
        attention.register_forward_hook(partial(compare, stage, index))
        for stage, index, attention in places
    ]
    try:
        exact(image)
    finally:
        for hook in hooks:
            hook.remove()
    return shifts


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
