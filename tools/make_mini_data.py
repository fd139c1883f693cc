"""Make the mini data set: seeded scenes in the layout of ADE20K, COCO, COCO-WholeBody or ImageNet.

    python tools/make_mini_data.py data/mini --layout ade20k --train 400 --val 60 --size 160 160

The folder is complete or not there; the same request a second time returns at once.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

# By its file, not as part of clustr_mm, whose import takes the seconds that torch takes: what is
# wrong with a request is told before.
_SPEC = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '../clustr_mm/datasets/mini/spec.py'
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    spec = runpy.run_path(_SPEC, run_name='clustr_mm.datasets.mini.spec')
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def refuse(message: str) -> None:
        raise spec['MiniDataError'](f'{message} (see --help)')

    parser.error = refuse  # type: ignore[method-assign, assignment]
    parser.add_argument('out', metavar='OUT', help='folder to make')
    parser.add_argument('--layout', default='ade20k', help=f'one of: {", ".join(spec["LAYOUTS"])}')
    parser.add_argument('--train', type=int, default=400, metavar='N', help='training pictures')
    parser.add_argument('--val', type=int, default=60, metavar='N', help='validation pictures')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(160, 160), metavar=('H', 'W'), help='in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='S')
    options = parser.parse_args(argv)
    request = options.layout, options.train, options.val, tuple(options.size), options.seed
    spec['MiniData'](*request)  # says what is wrong with it
    options.request = request
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    from rich.progress import Progress

    from clustr_mm.datasets.mini import MiniData, build

    with Progress(disable=not sys.stdout.isatty(), transient=True) as progress:
        task = progress.add_task('mini data', total=None)
        made = build(
            options.out,
            MiniData(*options.request),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for layout, root in made.items():
        print(f'{layout}: --data-root {root}')


if __name__ == '__main__':
    try:
        parse_args()
    except ValueError as error:
        sys.exit(f'error: {error}')

    from clustr_mm.engine.errors import run_tool

    sys.exit(run_tool(main))
