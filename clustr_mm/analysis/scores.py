"""A study's records as a table, mean and standard deviation over seeds, and as a plot."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clustr_mm.analysis.records import markdown_table, write_rows
from clustr_mm.analysis.study import Study
from clustr_mm.analysis.trials import Record


def best_rate(study: Study, tried: Sequence[Record], row: str) -> float | None:
    """The rate of a row: said, or of the best validation score; None where it is not known yet.

    Args:
        study: The study.
        tried: Records of the runs that choose rates.
        row: The row.
    """
    said = study.rows[row].get('rate', row)
    if not isinstance(said, str):
        return float(said)
    of = [record for record in tried if record.row == said]
    if not of or len(of) < len(study.rates):
        return None
    return max(of, key=lambda record: record.score).rate


def summary(study: Study, records: Sequence[Record]) -> list[dict[str, Any]]:
    """A line a row with records, in the study's order: score by mean, deviation and seed, cost.

    The deviation is that of a sample (n - 1), None of one seed. Scores are the study's, times its
    factor; times are means over seeds.
    """
    lines = []
    for row in study.rows:
        own = sorted((r for r in records if r.row == row), key=lambda record: record.seed)
        if not own:
            continue
        scores = [record.score * study.factor for record in own]
        trained = [each.train_seconds for each in own if each.train_seconds is not None]
        lines.append(
            dict(
                row=row,
                score=statistics.fmean(scores),
                deviation=statistics.stdev(scores) if len(scores) > 1 else None,
                seeds=' '.join(
                    f'{record.seed}:{s:.2f}' for record, s in zip(own, scores, strict=True)
                ),
                rate=own[0].rate,
                parameters=own[0].parameters,
                gmac=own[0].gmac,
                train_seconds=statistics.fmean(trained) if trained else None,
                image_seconds=statistics.fmean(record.image_seconds for record in own),
                dates=' '.join(sorted({record.measured['date'] for record in own})),
            )
        )
    return lines


def differences(lines: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """How far the rows' means lie apart, and how far their seeds alone would put them.

    Returns:
        The standard deviation of the means over the rows, and the one to expect of rows that are
        all alike: that of the seeds, pooled, by the root of their number. None of fewer than three
        rows, of single seeds, or of rows with different numbers of them.
    """
    counts = {len(line['seeds'].split()) for line in lines}
    if len(lines) < 3 or len(counts) > 1 or counts == {1}:
        return None
    pooled = statistics.fmean(line['deviation'] ** 2 for line in lines) ** 0.5
    return statistics.stdev(line['score'] for line in lines), pooled / counts.pop() ** 0.5


def table(study: Study, lines: Sequence[dict[str, Any]], tried: Sequence[Record]) -> str:
    """The lines of ``summary`` as Markdown, their ``differences``, and how rates were chosen."""
    cells = [
        ['row', study.score, 'each seed', 'rate', 'M parameters', 'GMAC', 'CPU s training',
         'CPU s image']
    ]  # fmt: skip
    for line in lines:
        spread = '' if line['deviation'] is None else f' ± {line["deviation"]:.2f}'
        cells.append(
            [
                line['row'],
                f'{line["score"]:.2f}{spread}',
                ', '.join(each.split(':')[1] for each in line['seeds'].split()),
                '-' if line['rate'] is None else f'{line["rate"]:g}',
                f'{line["parameters"] / 1e6:.2f}',
                f'{line["gmac"]:.3f}',
                '-' if line['train_seconds'] is None else f'{line["train_seconds"]:.0f}',
                f'{line["image_seconds"]:.3f}',
            ]
        )
    text = markdown_table(cells)
    if apart := differences(lines):
        text += (
            f"\nThe rows' means have a deviation of {apart[0]:.2f}; by the seeds alone it would be "
            f'{apart[1]:.2f}.\n'
        )
    if tried:
        rates = [['row', *(f'{rate:g}' for rate in study.rates)]]
        for row in dict.fromkeys(record.row for record in tried):
            by_rate = {r.rate: f'{r.score * study.factor:.2f}' for r in tried if r.row == row}
            rates.append([row, *(by_rate.get(rate, '-') for rate in study.rates)])
        text += f'\n{study.score} on the validation split by rate, in the runs that choose it:\n\n'
        text += markdown_table(rates)
    return text


def write_tables(
    folder: str | os.PathLike,
    study: Study,
    lines: Sequence[dict[str, Any]],
    tried: Sequence[Record],
) -> None:
    """Writes table.csv and table.md into a folder, which is made."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_rows(path / 'table.csv', lines)
    (path / 'table.md').write_text(table(study, lines, tried))


def plot(folder: str | os.PathLike, study: Study, lines: Sequence[dict[str, Any]]) -> None:
    """Draws score against multiply-adds of an image, with deviations, as cost.png.

    Multiply-adds, for times of runs on several machines do not compare.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, line in enumerate(lines):
        axes.errorbar(
            line['gmac'],
            line['score'],
            yerr=line['deviation'] or 0,
            fmt='os^D'[number // 10 % 4],  # ten colours, then the next shape
            color=f'C{number % 10}',
            capsize=3,
            label=line['row'],
        )
    axes.set_xlabel('GMAC of a test image, all layers and the clustering')
    axes.set_ylabel(f'{study.score} on the test split')
    axes.set_title(study.name)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize=8, frameon=False)
    figure.savefig(Path(folder, 'cost.png'))
