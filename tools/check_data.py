"""Names what is missing or wrong of a config's data sets, before a long run starts.

    python tools/check_data.py CONFIG [--data-root DIR] [--decode] [--subset]
        [--cfg-options KEY=VALUE ...]

A line a fault and exit status 1, or "the data is whole" and 0. Looked for: folders, annotation
files, every image that they name, the counts of the public data sets, classes, and label maps in
range; with --decode every image is read, too. Of one annotation file the first faulty annotation
is named.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import apply_cfg_options, load_config, set_data_root
from clustr_mm.engine.options import CfgOptions, Parser

SHOWN = 50


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config file')
    parser.add_argument('--data-root', metavar='DIR', help="the data set, in place of the config's")
    parser.add_argument('--decode', action='store_true', help='read every image')
    parser.add_argument(
        '--subset',
        action='store_true',
        help='a part of the data set is meant: show the counts, do not judge them',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE',
        help='set config values, as for train.py',
    )  # fmt: skip
    return parser


def progress_line() -> Callable[[str, int, int], None]:
    """Returns a function that says how many files are done, and the time left."""
    begun: dict[str, float] = {}
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start = begun.setdefault(what, last)
        moves = sys.stderr.isatty()
        if done == total or now - last < (0.2 if moves else 10):
            return
        last = now
        left = (now - start) / done * (total - done)
        line = f'{what}: {done:,}/{total:,}, ETA {left:.0f} s'
        if moves:
            print(f'\r{line} \r', end='', file=sys.stderr)
        else:
            print(line, file=sys.stderr)

    return show


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    from mmengine.registry import init_default_scope

    from clustr_mm.datasets.audit import audit

    cfg = load_config(options.config)
    if options.data_root is not None:
        set_data_root(cfg, options.data_root)
    apply_cfg_options(cfg, options.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    faults = 0
    show = progress_line()
    for fault in audit(cfg, print, show, options.decode, options.subset):
        faults += 1
        if faults <= SHOWN:
            print(f'fault: {fault}', flush=True)
    if faults:
        hidden = f' ({SHOWN} shown)' if faults > SHOWN else ''
        raise UserError(
            f'{faults} fault{"s" * (faults > 1)} in the data of {options.config}{hidden}'
        )
    print('the data is whole')


if __name__ == '__main__':
    sys.exit(run_tool(main))
