"""Checks on a GPU, in under ten minutes, what must hold there: speed, memory, right results.

    make gpu-check                                    # or, anywhere:
    python tools/analysis/gpu_check.py [--out FOLDER] [--minutes 9]
    python tools/analysis/gpu_check.py --dry-run      # tiny, on a CPU: shows that the check works

It needs torch, triton, mmengine, and mmdet or timm for the backbones to compare with. UperNet needs
mmseg besides, Mask R-CNN mmdet and mmcv with its CUDA operators; what is missing is said in a line.

Every part is a process of its own: if one fails, hangs or takes too long, the others still run. A
CSV file gets every figure as it comes, a Markdown page says what holds and what does not, a log has
what the parts said.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from clustr_mm.analysis.gpu_parts import PARTS
from clustr_mm.analysis.gpu_sizes import FULL, TINY, Reading
from clustr_mm.analysis.records import circumstances, results_file, write_rows
from clustr_mm.analysis.verdicts import criteria, judge, summary
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser

# Seconds that a part may take; what the parts before it left of the whole counts too. What the list
# of what must hold needs comes first.
LIMITS = dict(
    correctness=110,
    clustering=80,
    block=40,
    eager=100,
    models=120,
    compiled=240,
    growth=40,
    tiles=100,
    profile=60,
)
MARK = 'reading '


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='work_dirs/gpu_check', metavar='FOLDER')
    parser.add_argument('--minutes', type=float, default=9.0, help='for all of it (default 9)')
    parser.add_argument('--only', nargs='+', choices=list(PARTS), help='some parts')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='every part at a tiny size on a CPU: it works, the figures mean nothing',
    )
    parser.add_argument('--part', choices=list(PARTS), help='run this part, here (used inside)')
    return parser.parse_args(argv)


def run_part(options: argparse.Namespace) -> None:
    """Runs one part in this process; every reading is a line of output."""
    warnings.filterwarnings('ignore')
    device = torch.device('cpu' if options.dry_run else 'cuda')
    sizes = TINY if options.dry_run else FULL
    for reading in PARTS[options.part](device, sizes, Path(options.out)):
        print(MARK + json.dumps(reading.row()), flush=True)


def lines_until(stream: IO[bytes], deadline: float) -> Iterator[str]:
    """Yields a process's lines as they come, until it ends or its time does.

    Raises:
        TimeoutError: If its time ends first.
    """
    selector = selectors.DefaultSelector()
    selector.register(stream, selectors.EVENT_READ)
    rest = b''
    while True:
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        block = os.read(stream.fileno(), 65536)
        if not block:
            return
        *lines, rest = (rest + block).split(b'\n')
        yield from (line.decode(errors='replace') for line in lines)


def run_apart(
    part: str, options: argparse.Namespace, seconds: float, log: IO[str], note: Callable
) -> str | None:
    """Runs a part in a process of its own and notes its readings.

    Returns:
        Why it did not end well; None if it did.
    """
    command = [sys.executable, os.path.abspath(__file__), '--part', part, '--out', options.out]
    environment = dict(os.environ)
    if options.dry_run:
        command.append('--dry-run')
        environment |= dict(TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='')
    log.write(f'\n### {part}\n')
    log.flush()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    try:
        for line in lines_until(process.stdout, time.monotonic() + seconds):
            if line.startswith(MARK):
                note(Reading(**json.loads(line[len(MARK) :])))
            else:
                log.write(line + '\n')
                log.flush()
        if process.wait(timeout=30):
            return f'ended with status {process.returncode}; {last_words(Path(log.name))}'
        return None
    except (TimeoutError, subprocess.TimeoutExpired):
        return f'took more than the {seconds:.0f} s that were left for it'
    finally:
        # Its helpers too: torch.compile starts some.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def last_words(log: Path) -> str:
    """The last line that a process said, which names its error."""
    lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return ' '.join(lines[-1].split())[:300] if lines else 'it said nothing'


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    if options.part:
        run_part(options)
        return
    if not options.dry_run and not torch.cuda.is_available():
        raise UserError(
            'torch sees no GPU here, and this check is of one; --dry-run tries it on a CPU'
        )
    start = time.monotonic()
    device = torch.device('cpu' if options.dry_run else 'cuda')
    sizes = TINY if options.dry_run else FULL
    facts = circumstances(device) | dict(
        triton=version_of('triton'), mmcv=version_of('mmcv'), dtype=str(sizes.dtype)
    )
    what = 'gpu_check_dry_run' if options.dry_run else 'gpu_check'
    dtype = str(sizes.dtype).removeprefix('torch.')
    table, page, log_file = (
        results_file(options.out, what, dtype, device, suffix) for suffix in ('.csv', '.md', '.log')
    )
    heading = 'DRY RUN on a CPU: the figures mean nothing' if options.dry_run else 'Check on a GPU'
    readings: list[Reading] = []
    failures: dict[str, str] = {}

    def note(reading: Reading) -> None:
        readings.append(reading)
        write_rows(table, [each.row() | facts for each in readings])

    with open(log_file, 'w') as log:
        for part in options.only or PARTS:
            left = 60 * options.minutes - (time.monotonic() - start)
            begin, before = time.monotonic(), len(readings)
            # A process takes ten seconds to begin.
            reason: str | None = f'no time was left for it: --minutes is {options.minutes:g}'
            if left > 15:
                limit = left if options.dry_run else min(LIMITS[part], left)
                reason = run_apart(part, options, limit, log, note)
            if reason is not None:
                failures[part] = reason
            page.write_text(summary(sizes, readings, failures, facts, heading))
            print(
                f'{part}: {len(readings) - before} figures, {time.monotonic() - begin:.0f} s'
                + (f'; {reason}' if reason else ''),
                flush=True,
            )
    for criterion in criteria(sizes):
        holds, figure = judge(criterion, readings, failures)
        sign = '>=' if criterion.at_least else '<='
        verdict = {True: 'holds', False: 'FAILS', None: 'not measured'}[holds]
        print(f'{verdict:<13}{criterion.text}: {figure} ({sign} {criterion.limit:g})')
    print(f'{heading}: {page}\nevery figure: {table}\nlog: {log_file}')


def version_of(library: str) -> str:
    try:
        return str(__import__(library).__version__)
    except ImportError:
        return 'none'


if __name__ == '__main__':
    sys.exit(run_tool(main))
