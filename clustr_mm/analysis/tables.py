"""The ablation's results as Markdown tables and as a CSV file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clustr_mm.analysis.ablation import Row
from clustr_mm.analysis.records import write_rows

Scores = Mapping[str, Sequence[float]]


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Lays out a table whose columns line up, the first to the left and the others to the right.

    Args:
        lines: The heading, then the lines, of as many cells each.

    Returns:
        The table's lines, a newline after each.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    laid_out = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (lines[0], rule, *lines[1:])
    ]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in laid_out)


def cost_table(rows: Sequence[Row], seconds: str, scores: Scores) -> str:
    """What each setting costs, moves and scores.

    Args:
        rows: The settings.
        seconds: Heading of the time.
        scores: Scores by setting, one a seed; empty where nothing was trained.

    Returns:
        A Markdown table.
    """
    stages, maps = range(1, len(rows[0].attention) + 1), range(1, len(rows[0].maps) + 1)
    lines = [
        ['setting', 'GMAC', seconds, 'x exact', 'MiB']
        + [f'attention {stage} (%)' for stage in stages]
        + [f'to dense {stage} (%)' for stage in stages if rows[0].to_dense]
        + [f'map {stage} (%)' for stage in maps]
        + ['score'] * bool(scores)
    ]
    for row in rows:
        lines.append(
            [row.setting, f'{row.gmac:.2f}', f'{row.seconds:.2f}', f'{row.ratio:.2f}']
            + ['-' if row.peak_mib is None else f'{row.peak_mib:.0f}']
            + [
                f'{100 * mean:.1f} ({100 * worst:.1f})'
                for mean, worst in (*row.attention, *(row.to_dense or ()))
            ]
            + [f'{100 * shift:.1f}' for shift in row.maps]
            + [_mean_and_range(scores.get(row.setting, ()))] * bool(scores)
        )
    return markdown_table(lines)


def cluster_table(rows: Sequence[Row]) -> str:
    """What each setting's clusters look like at the coarsest scale; the CSV file has all scales.

    Args:
        rows: The settings.

    Returns:
        A Markdown table.
    """
    names = ('clusters', 'largest', 'single', 'empty', 'extent')
    lines = [
        ['setting']
        + [
            f'{name} {stage}' + (' (%)' if name != 'clusters' else '')
            for stage in range(1, len(rows[0].clusters) + 1)
            for name in names
        ]
    ]
    for row in rows:
        cells = [row.setting]
        for scales in row.clusters:
            number, *fractions = asdict(scales[0]).values()
            cells += [f'{number:.0f}', *(f'{100 * fraction:.0f}' for fraction in fractions)]
        lines.append(cells)
    return markdown_table(lines)


def score_table(scores: Scores) -> str:
    """The scores alone, with each seed's.

    Args:
        scores: Scores by setting, one a seed.

    Returns:
        A Markdown table.
    """
    lines = [['setting', 'mean', 'each seed']]
    for setting, each in scores.items():
        lines.append(
            [setting, f'{statistics.fmean(each):.1f}', ', '.join(f'{s:.1f}' for s in each)]
        )
    return markdown_table(lines)


def write_csv(
    path: str, rows: Sequence[Row], facts: Mapping[str, Any], scores: Scores | None = None
) -> None:
    """Writes a line a setting, with what it was measured on in every line; shifts as fractions.

    Args:
        path: The file.
        rows: The settings.
        facts: What they were measured on.
        scores: Scores by setting, one a seed.
    """
    write_rows(
        path, [{**_csv_line(row, (scores or {}).get(row.setting, ())), **facts} for row in rows]
    )


def _csv_line(row: Row, scores: Sequence[float]) -> dict[str, Any]:
    line: dict[str, Any] = dict(
        setting=row.setting,
        gmac=f'{row.gmac:.4f}',
        seconds=f'{row.seconds:.4f}',
        ratio=f'{row.ratio:.4f}',
        peak_mib='' if row.peak_mib is None else f'{row.peak_mib:.1f}',
    )
    for name, shifts in (('attention', row.attention), ('to_dense', row.to_dense or ())):
        for stage, (mean, worst) in enumerate(shifts, 1):
            line[f'{name}{stage}_mean'] = f'{mean:.5f}'
            line[f'{name}{stage}_worst'] = f'{worst:.5f}'
    for stage, shift in enumerate(row.maps, 1):
        line[f'map{stage}'] = f'{shift:.5f}'
    for stage, scales in enumerate(row.clusters, 1):
        for scale, found in enumerate(scales, 1):
            for name, value in asdict(found).items():
                line[f'{name}{stage}_scale{scale}'] = f'{value:.5g}'
    for seed, score in enumerate(scores):
        line[f'score_seed{seed}'] = f'{score:.4f}'
    return line


def _mean_and_range(scores: Sequence[float]) -> str:
    if not scores:
        return '-'
    mean = f'{statistics.fmean(scores):.1f}'
    return mean if len(scores) == 1 else f'{mean} ({min(scores):.1f} to {max(scores):.1f})'
