"""Shows what a trained model predicts: overlays of an image, a folder or a video.

    python tools/demo.py TASK CONFIG CHECKPOINT INPUT [--out-dir demo]

TASK is classification, detection, pose or segmentation. A pose model asks where the persons are:
--box LEFT TOP WIDTH HEIGHT, once for each, or a detector by --det-config, --det-checkpoint and
--det-class; with neither, the whole image is one person. Where the detector finds nobody, nothing
is drawn.
"""

import argparse
import sys
from collections.abc import Sequence

from clustr_mm.engine import run_tool
from clustr_mm.engine.inference import add_demo_options, demo_from, run_demo
from clustr_mm.engine.options import Parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_demo_options(parser)
    parser.add_argument('input', help='an image, a video, or a folder of them')
    parser.add_argument('--out-dir', default='demo', metavar='DIR', help='of the overlays (demo)')
    parser.add_argument(
        '--box', nargs=4, type=float, action='append', default=[],
        metavar=('LEFT', 'TOP', 'WIDTH', 'HEIGHT'), help='a person, in pixels',
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    draw = demo_from(options, options.box)
    for overlay in run_demo(draw, options.input, options.out_dir):
        print(overlay, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
