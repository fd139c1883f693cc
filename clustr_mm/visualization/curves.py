"""Curves of training runs, from the scalars that mmengine's LocalVisBackend writes."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """What a run logged.

    Attributes:
        loss: Iterations and training losses.
        scores: For each validation score iterations and values.
    """

    loss: list[tuple[int, float]]
    scores: dict[str, list[tuple[int, float]]]


def read_run(work_dir: str | os.PathLike) -> Run:
    """Reads the scalars of a work folder; a resumed run's parts are joined.

    Args:
        work_dir: The folder that ``--work-dir`` named.

    Returns:
        Run: Losses and scores over iterations.

    Raises:
        FileNotFoundError: If no run has logged there.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    if not lines:
        raise FileNotFoundError(
            f'{work_dir} has no log of a run (*/vis_data/scalars.json); give a --work-dir that '
            'tools/train.py has written'
        )
    loss: dict[int, float] = {}
    scores: dict[str, dict[int, float]] = {}
    now = 0
    for line in lines:
        if 'loss' in line:  # a resumed run writes some iterations anew: the last word counts
            now = line.get('iter', line['step'])
            loss[now] = line['loss']
            continue
        for name, value in line.items():
            if name not in ('step', 'time', 'data_time') and isinstance(value, int | float):
                scores.setdefault(name, {})[now] = value
    return Run(
        sorted(loss.items()), {name: sorted(points.items()) for name, points in scores.items()}
    )


def plot_curves(
    runs: Mapping[str, Run],
    path: str | os.PathLike,
    metrics: Sequence[str] | None = None,
    title: str = '',
) -> None:
    """Draws losses on the left and validation scores on the right.

    Args:
        runs: Runs by the name that the legend gives them.
        path: The picture to write; its suffix says the format.
        metrics: Names of scores; None takes the first one.
        title: A line above.

    Raises:
        ValueError: If no run has one of the scores (with those that there are).
    """
    known = list(dict.fromkeys(name for run in runs.values() for name in run.scores))
    metrics = list(metrics or known[:1])
    for name in metrics:
        if name not in known:
            raise ValueError(f'no run has score {name}; there are: {", ".join(known) or "none"}')
    figure = Figure(figsize=(9, 3.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    for index, (name, run) in enumerate(runs.items()):
        colour = f'C{index}'
        left.plot(*zip(*run.loss, strict=True), color=colour, label=name)
        for style, metric in zip(('-', '--', ':', '-.') * len(metrics), metrics, strict=False):
            points = run.scores.get(metric)
            if points:
                label = f'{name}: {metric}' if len(runs) > 1 else metric
                right.plot(*zip(*points, strict=True), style, marker='o', color=colour, label=label)
    left.set(xlabel='iteration', ylabel='training loss', yscale='log')
    right.set(xlabel='iteration', ylabel='validation score', xlim=left.get_xlim())
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
