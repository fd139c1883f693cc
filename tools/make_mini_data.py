"""Make the mini data set: seeded scenes in the layout of ADE20K, COCO, COCO-WholeBody or ImageNet.

    python tools/make_mini_data.py data/mini --layout ade20k --train 400 --val 60 --size 160 160

The folder is complete or not there; the same request a second time returns at once.
"""

import argparse
import sys
from collections.abc import Sequence

from clustr_mm.engine.errors import run_tool
from clustr_mm.engine.options import Parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from clustr_mm.datasets.mini import LAYOUTS

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', metavar='OUT', help='folder to make')
    parser.add_argument('--layout', default='ade20k', help=f'one of: {", ".join(LAYOUTS)}')
    parser.add_argument('--train', type=int, default=400, metavar='N', help='training pictures')
    parser.add_argument('--val', type=int, default=60, metavar='N', help='validation pictures')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(160, 160), metavar=('H', 'W'), help='in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='S')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    from rich.progress import Progress

    from clustr_mm.datasets.mini import MiniData, build

    data = MiniData(options.layout, options.train, options.val, tuple(options.size), options.seed)
    with Progress(disable=not sys.stdout.isatty(), transient=True) as progress:
        task = progress.add_task('mini data', total=None)
        made = build(
            options.out,
            data,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for layout, root in made.items():
        print(f'{layout}: --data-root {root}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
