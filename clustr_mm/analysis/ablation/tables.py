"""The ablation's results as Markdown tables and as a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clustr_mm.analysis.ablation.compare import Row
from clustr_mm.analysis.records import markdown_table, write_rows


def cost_table(rows: Sequence[Row], seconds: str) -> str:
    """What each setting costs and moves.

    Args:
        rows: The settings.
        seconds: Heading of the time.

    Returns:
        A Markdown table.
    """
    stages, maps = range(1, len(rows[0].attention) + 1), range(1, len(rows[0].maps) + 1)
    lines = [
        ['setting', 'GMAC', seconds, 'x exact', 'MiB']
        + [f'attention {stage} (%)' for stage in stages]
        + [f'to dense {stage} (%)' for stage in stages if rows[0].to_dense]
        + [f'map {stage} (%)' for stage in maps]
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


def write_csv(path: str, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Writes a line a setting, with what it was measured on in every line; shifts as fractions."""
    write_rows(path, [{**_csv_line(row), **facts} for row in rows])


def _csv_line(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        name: getattr(row, name) for name in ('setting', 'gmac', 'seconds', 'ratio', 'peak_mib')
    }
    for name, shifts in (('attention', row.attention), ('to_dense', row.to_dense or ())):
        for stage, (mean, worst) in enumerate(shifts, 1):
            line |= {f'{name}{stage}_mean': mean, f'{name}{stage}_worst': worst}
    line |= {f'map{stage}': shift for stage, shift in enumerate(row.maps, 1)}
    for stage, scales in enumerate(row.clusters, 1):
        for scale, found in enumerate(scales, 1):
            for name, value in asdict(found).items():
                line[f'{name}{stage}_scale{scale}'] = value
    return line
