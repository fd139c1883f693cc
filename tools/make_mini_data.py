"""Make the mini data set: seeded scenes in the layout of ADE20K, COCO, COCO-WholeBody or ImageNet.

    python tools/make_mini_data.py data/mini --layout ade20k --train 400 --val 60 --size 160 160

The folder is complete or not there; the same request a second time returns at once.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

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


def progress_line() -> Callable[[int, int], None]:
    """Returns a function that prints pictures done and the time left, a few times a second."""
    start = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        # In a log file a line every 10 s; in a terminal one line that moves.
        moves = sys.stderr.isatty()
        if done < total and now - last < (0.2 if moves else 10):
            return
        last = now
        left = (now - start) / done * (total - done)
        line = f'mini data: {done}/{total} pictures, {done / max(now - start, 1e-9):.0f}/s'
        end = '\n' if done == total or not moves else ''
        print(f'{chr(13) if moves else ""}{line}, ETA {left:.0f} s ', end=end, file=sys.stderr)

    return show


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    from clustr_mm.datasets.mini import MiniData, build

    data = MiniData(options.layout, options.train, options.val, tuple(options.size), options.seed)
    for layout, root in build(options.out, data, progress_line()).items():
        print(f'{layout}: --data-root {root}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
