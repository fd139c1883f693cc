"""Names what is missing or wrong of a config's data sets, before a long run starts.

    python tools/check_data.py CONFIG [--data-root DIR] [--decode] [--subset]
        [--cfg-options KEY=VALUE ...]

A line a fault and exit status 1, or "the data is whole" and 0. Looked for: folders, annotation
files, every image that a run reads, the counts of the public data sets, classes, and label maps in
range; with --decode every image is loaded as training loads it, too. Of one annotation file the
first faulty annotation is named, and its images are looked at once it has none.
"""

import argparse
import sys
from collections.abc import Sequence

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import apply_cfg_options, load_config, set_data_root
from clustr_mm.engine.options import CfgOptions, Parser
from clustr_mm.engine.progress import progress_line

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


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    from clustr_mm.datasets.audit import audit

    cfg = load_config(options.config)
    if options.data_root is not None:
        set_data_root(cfg, options.data_root)
    apply_cfg_options(cfg, options.cfg_options)
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
