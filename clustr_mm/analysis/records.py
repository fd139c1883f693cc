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


def results_file(
    folder: str | os.PathLike, what: str, dtype: str, device: torch.device, suffix: str = '.csv'
) -> Path:
    """A path, named by what was measured, dtype, torch and device.

    Args:
        folder: Where it shall be; made if it is not there.
        what: What was measured.
        dtype: Precision in words.
        device: On what.
        suffix: Of the file.

    Returns:
        The path.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    words = [what, dtype, f'torch{torch.__version__}', device_name(device)]
    slugs = (re.sub(r'[^A-Za-z0-9.+-]+', '-', word).strip('-') for word in words)
    return path / f'{"_".join(slugs)}{suffix}'


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as a CSV file; None and what a row has not become an empty cell.

    Args:
        path: The file.
        rows: Values by column; the columns are those of all rows, in order.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        writer.writerows(rows)
