"""How time and memory of the clustering grow with the number of tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from clustr_mm.analysis.measure import measure
from clustr_mm.analysis.roofline import cluster_counts, why_not_backend
from clustr_mm.ops.clustering import dpc_knn

TOKENS_AT_800_1333 = 66_800  # 200 x 334
_ENOUGH = 4.0  # seconds of measuring at one N
TOKENS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, TOKENS_AT_800_1333)


@dataclass(frozen=True)
class Point:
    """What clustering so many tokens took.

    Attributes:
        tokens: N.
        seconds: See ``Cost``.
        peak_mib: Highest memory above the input's; None where unknown.
    """

    tokens: int
    seconds: float
    peak_mib: float | None


def measure_growth(
    backend: str, tokens: Sequence[int], channels: int, device: torch.device, runs: int = 3
) -> Iterator[Point]:
    """Clusters ever more tokens.

    Args:
        backend: Backend of ``dpc_knn``.
        tokens: Numbers of tokens N, ascending.
        channels: C.
        device: Where.
        runs: The fastest of so many counts; fewer of those that take long.

    Yields:
        A point for each N that the backend is measured at.
    """
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, min(tokens), channels, generator=generator).to(device)
    if why_not_backend(backend, small) is None:
        dpc_knn(small, cluster_counts(min(tokens)), backend=backend)  # loads code, starts threads
    for n in tokens:
        x = torch.randn(1, n, channels, generator=generator).to(device)
        if why_not_backend(backend, x) is not None:
            return
        call = partial(dpc_knn, x, cluster_counts(n), backend=backend)
        costs = [measure(call, device)[1]]
        while len(costs) < runs and sum(cost.seconds for cost in costs) < _ENOUGH:
            costs.append(measure(call, device)[1])
        peaks = [cost.peak_mib for cost in costs if cost.peak_mib is not None]
        yield Point(n, min(cost.seconds for cost in costs), max(peaks) if peaks else None)


def fit_exponent(tokens: Sequence[int], values: Sequence[float]) -> float:
    """The exponent a of values ~ N^a: the slope of the least-squares line of their logarithms.

    Args:
        tokens: Numbers of tokens, at least two different ones.
        values: What was measured at each; positive.

    Returns:
        The exponent.

    Raises:
        ValueError: If there are fewer than two different N, or a value is not positive.
    """
    if len(set(tokens)) < 2 or min(values) <= 0:
        raise ValueError(
            f'{len(set(tokens))} numbers of tokens with a least value of {min(values, default=0)}; '
            'an exponent needs two numbers of tokens and positive values'
        )
    x, y = [math.log(n) for n in tokens], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def exponents(points: Sequence[Point]) -> tuple[float | None, float | None]:
    """The exponents of time and of memory; None where there is too little to fit.

    Args:
        points: Of one backend.

    Returns:
        Both.
    """
    tokens = [point.tokens for point in points]
    seconds = [point.seconds for point in points]
    # A peak of 0 is one that a page's size hid.
    memory = [(point.tokens, point.peak_mib) for point in points if point.peak_mib]
    of_time = fit_exponent(tokens, seconds) if len(set(tokens)) > 1 else None
    return of_time, fit_exponent(*zip(*memory, strict=True)) if len(memory) > 1 else None


def plot_growth(growth: Mapping[str, Sequence[Point]], path: str | os.PathLike, title: str) -> None:
    """Draws time on the left and memory on the right, over N, both axes logarithmic.

    Args:
        growth: Points by backend.
        path: The picture to write; its suffix says the format.
        title: A line above.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(9, 3.6), layout='constrained')
    axes = figure.subplots(1, 2)
    for index, (backend, points) in enumerate(growth.items()):
        tokens = [point.tokens for point in points]
        seconds: list[float | None] = [point.seconds for point in points]
        peaks = [point.peak_mib for point in points]
        for panel, values, exponent in zip(axes, (seconds, peaks), exponents(points), strict=True):
            label = backend if exponent is None else f'{backend}: N^{exponent:.2f}'
            if None not in values:
                panel.plot(tokens, values, 'o-', color=f'C{index}', label=label, markersize=4)
    axes[0].set(ylabel='seconds')
    axes[1].set(ylabel='peak memory above the input (MiB)')
    seen = sorted({point.tokens for points in growth.values() for point in points})
    for panel in axes:
        panel.set(xlabel='tokens N', xscale='log', yscale='log')
        panel.set_xticks(seen)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f'{n:,.0f}'))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(axis='x', labelrotation=40, labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
