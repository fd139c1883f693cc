"""Names what is missing or wrong of a config's data sets, before a long run starts.

    python tools/check_data.py CONFIG [--data-root DIR] [--decode] [--cfg-options KEY=VALUE ...]

A line a fault and exit status 1, or "the data is whole" and 0; a line that begins with "warning:"
says what may be meant so. Looked for: folders, annotation files and what is in them, every image
that a run reads, classes, and label maps in range; with --decode every image is loaded by the
config's own loading steps, too.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import check_keys, load_config, set_data_root
from clustr_mm.engine.options import CfgOptions, Parser

SHOWN = 50


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config file')
    parser.add_argument('--data-root', metavar='DIR', help="the data set, in place of the config's")
    parser.add_argument('--decode', action='store_true', help='load every image')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE',
        help='set config values, as for train.py',
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    from clustr_mm.datasets.audit import audit

    warnings.simplefilter('ignore')  # of the libraries' arguments, and not of the data
    # Pillow's, of formats that only a config's step reads.
    logging.getLogger('PIL').setLevel(logging.CRITICAL)
    cfg = load_config(options.config)
    if options.data_root is not None:
        set_data_root(cfg, options.data_root)
    check_keys(cfg, options.cfg_options)
    cfg.merge_from_dict(options.cfg_options)
    faults = 0
    for line in audit(cfg, options.decode):
        faults += line.startswith('fault: ')
        if faults <= SHOWN or not line.startswith('fault: '):
            print(line, flush=True)
    if faults:
        hidden = f' ({SHOWN} shown)' if faults > SHOWN else ''
        raise UserError(
            f'{faults} fault{"s" * (faults > 1)} in the data of {options.config}{hidden}'
        )
    print('the data is whole')


if __name__ == '__main__':
    sys.exit(run_tool(main))
