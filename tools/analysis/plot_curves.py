"""Draw the curves of training runs: loss and validation scores over iterations.

    python tools/analysis/plot_curves.py WORK_DIR --metrics coco/bbox_mAP_50 --out curves.png

Several work folders share the picture, so that their runs can be compared.
"""

import argparse
import sys
from collections.abc import Sequence

from clustr_mm.engine.errors import run_tool
from clustr_mm.engine.options import Parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='WORK_DIR', help='work folders of runs')
    parser.add_argument('--names', nargs='+', metavar='NAME', help='the runs by other names')
    parser.add_argument('--metrics', nargs='+', metavar='NAME', help='scores, as the log has them')
    parser.add_argument('--title', default='')
    parser.add_argument('--out', default='curves.png', metavar='FILE', help='picture to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    from clustr_mm.engine.errors import UserError
    from clustr_mm.visualization.curves import plot_curves, read_run

    names = options.names or options.runs
    if len(names) != len(options.runs):
        raise UserError(f'--names has {len(names)} names for {len(options.runs)} runs')
    try:
        runs = {name: read_run(path) for name, path in zip(names, options.runs, strict=True)}
        plot_curves(runs, options.out, options.metrics, options.title)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    print(f'curves: {options.out}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
