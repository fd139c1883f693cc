"""Shows what a trained model predicts: overlays of an image, a folder or a video.

    python tools/demo.py TASK CONFIG CHECKPOINT INPUT [--out-dir demo] [--clusters]

TASK is classification, detection, pose or segmentation. A pose model asks where the persons are:
--box LEFT TOP WIDTH HEIGHT, once for each, or a detector by --det-config, --det-checkpoint and
--det-class; with neither, the whole image is one person. Where the detector finds nobody, nothing
is drawn. --clusters adds a sheet of the backbone's clusters beside every image's overlay.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.progress import track

from clustr_mm.datasets.pixels import rgb_or_bands
from clustr_mm.engine import run_tool
from clustr_mm.engine.inference import VIDEOS, add_demo_options, demo_from, plan_overlays
from clustr_mm.engine.options import Parser
from clustr_mm.visualization import show_clusters


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_demo_options(parser)
    parser.add_argument('input', help='an image, a video, or a folder of them')
    parser.add_argument('--out-dir', default='demo', metavar='DIR', help='of the overlays (demo)')
    parser.add_argument(
        '--box', nargs=4, type=float, action='append', default=[],
        metavar=('LEFT', 'TOP', 'WIDTH', 'HEIGHT'), help='a person, in pixels',
    )  # fmt: skip
    parser.add_argument('--clusters', action='store_true', help='a sheet of clusters a picture')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    demo = demo_from(options, options.box)
    pairs = plan_overlays(options.input, options.out_dir)
    for file, overlay in track(pairs, 'Drawing', disable=not sys.stdout.isatty()):
        demo.draw_file(file, overlay)
        print(overlay, flush=True)
        if options.clusters and file.suffix.lower() not in VIDEOS:
            sheet = overlay.with_name(f'{overlay.stem}_clusters.png')
            photo = rgb_or_bands(demo.read(str(file)))
            show_clusters(demo.model, photo, title=file.name).save(sheet)
            print(sheet, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
