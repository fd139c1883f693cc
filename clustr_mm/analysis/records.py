"""Figures in files: what was measured, on what, with which command."""

from __future__ import annotations

import csv
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """A device in words: a GPU's name, or the processor's."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text(errors='replace').splitlines()
    except OSError:
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def circumstances(device: torch.device) -> dict[str, Any]:
    """What a figure was measured on: device, threads, versions, command."""
    facts: dict[str, Any] = dict(device=device_name(device))
    if device.type == 'cuda':
        facts['cuda'] = torch.version.cuda
    else:
        facts['threads'] = torch.get_num_threads()
    facts['torch'] = torch.__version__
    facts['python'] = platform.python_version()
    facts['command'] = shlex.join(['python', *sys.argv])
    return facts


def results_file(folder: str | os.PathLike, what: str, dtype: str, device: torch.device) -> Path:
    """Names a CSV file by what was measured, precision, torch and device; makes its folder."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    words = [what, dtype, f'torch{torch.__version__}', device_name(device)]
    slugs = (re.sub(r'[^A-Za-z0-9.+-]+', '-', word).strip('-') for word in words)
    return path / f'{"_".join(slugs)}.csv'


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as a CSV file, floats with five digits; what a row lacks is an empty cell.

    Args:
        path: The file.
        rows: Values by column; the columns are those of all rows, in order.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f'{v:.5g}' if isinstance(v, float) else v for k, v in row.items()})


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
