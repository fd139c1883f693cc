"""Trains and tests the rows of a study with its seeds, and sets what they score beside the cost.

    python tools/analysis/compare.py STUDY [--rows clustr pvtv2_b0] [--jobs 1] [--data-root DIR]
        [--records docs/records] [--work-dir work_dirs/compare] [--out DIR] [--table]

A study is a small config file: tools/analysis/studies has those of docs/real_data.md. Each run is
tools/train.py and tools/test.py in processes of one thread, with nothing validated on the way; the
last checkpoint is tested, once. Of a row that names no rate, one seed is first trained with each of
`rates`, as `rate_search` says, and scored on the validation split.

Every run leaves a record, a JSON file below --records: score, parameters, GMAC, processor seconds
of the training and of a test image, versions, command. A run that has its record is not done again,
one that was interrupted goes on: the same command always does what is left. At the end stands the
table of the records, mean and standard deviation over seeds; --out writes it as table.csv and
table.md, and the score against the cost as cost.png. --table does that alone.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta

from clustr_mm.analysis.scores import best_rate, plot, summary, table, write_tables
from clustr_mm.analysis.study import Run, Study, load_study
from clustr_mm.analysis.trials import Record, Trials
from clustr_mm.engine.errors import UserError, near, run_tool
from clustr_mm.engine.options import Parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', help='a config file with the rows')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='only these')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time, of one thread each')
    parser.add_argument('--data-root', metavar='DIR', help="the data set, in place of the config's")
    parser.add_argument('--records', default='docs/records', metavar='DIR')
    parser.add_argument('--work-dir', default='work_dirs/compare', metavar='DIR')
    parser.add_argument('--out', metavar='DIR', help='where tables and the plot go')
    parser.add_argument('--table', action='store_true', help='run nothing: only what is recorded')
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise UserError(f'--jobs is {options.jobs}; use at least 1')
    return options


def rows_of(study: Study, asked: Sequence[str] | None) -> list[str]:
    for row in asked or ():
        if row not in study.rows:
            raise UserError(f'--rows {row}: not in the study{near(row, study.rows)}')
    return list(asked or study.rows)


def seconds_of(record: Record) -> str:
    """Of the training; of one that was interrupted it is not known."""
    return '?' if record.train_seconds is None else f'{record.train_seconds:.0f}'


def do_all(trials: Trials, runs: Sequence[Run], jobs: int, table_only: bool) -> list[Record]:
    """Does the runs that have no record; the records of all that have one now."""
    found = {run: trials.record_of(run) for run in runs}
    left = [run for run, record in found.items() if record is None]
    if left and not table_only:
        started = time.monotonic()
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(trials.do, run): run for run in left}
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    run = futures[future]
                    record = found[run] = future.result()
                    eta = (time.monotonic() - started) / number * (len(left) - number)
                    print(
                        f'{number} of {len(left)}: {run.name}: {trials.study.score} '
                        f'{record.score * trials.study.factor:.2f} on {record.split}, '
                        f'{seconds_of(record)} CPU s; '
                        f'left: {timedelta(seconds=round(eta))}',
                        file=sys.stderr,
                        flush=True,
                    )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [record for record in found.values() if record is not None]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    study = load_study(options.study)
    rows = rows_of(study, options.rows)
    trials = Trials(study, options.records, options.work_dir, options.data_root)

    def run(runs: Sequence[Run]) -> list[Record]:
        return do_all(trials, runs, options.jobs, options.table)

    searched = dict.fromkeys(of for row in rows if (of := study.rate_row(row)) is not None)
    tried = run([each for row in searched for each in study.search(row)])
    rates = {row: best_rate(study, tried, row) for row in rows}
    ready = [row for row in rows if rates[row] is not None or not study.rates]
    records = run([each for row in ready for each in study.runs(row, rates[row])])
    rows_now = summary(study, records)
    print(table(study, rows_now, tried), end='')
    if options.out:
        write_tables(options.out, study, rows_now, tried)
        plot(options.out, study, rows_now)


if __name__ == '__main__':
    sys.exit(run_tool(main))
