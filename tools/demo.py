"""Shows what a trained model predicts: overlays of an image, of those in a folder, or of a video.

    python tools/demo.py TASK CONFIG CHECKPOINT INPUT [--out-dir demo]

TASK is classification, detection, pose or segmentation. A detector finds the persons of a pose
model, by --det-config, --det-checkpoint and --det-class; without one, or where it finds nobody, the
whole image is one person. Videos are for pose. tools/analysis/clusters.py draws the clusters.
"""

import argparse
import mimetypes
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.progress import track

from clustr_mm.datasets.files import IMAGE_SUFFIXES, find_images
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.inference import add_demo_options, demo_from
from clustr_mm.engine.options import Parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_demo_options(parser)
    parser.add_argument('input', help='an image, a folder of them, or a video')
    parser.add_argument('--out-dir', default='demo', metavar='DIR', help='of the overlays (demo)')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    out_dir, files = Path(options.out_dir), list(find_images([options.input]))
    if out_dir.resolve() == files[0].parent.resolve():
        raise UserError(f'overlays would replace the files in {out_dir}; choose another --out-dir')
    demo = demo_from(options)
    out_dir.mkdir(parents=True, exist_ok=True)
    for file in track(files, 'Drawing', disable=not sys.stdout.isatty()):
        overlay = out_dir / file.name
        if (mimetypes.guess_type(file)[0] or '').startswith('video/'):
            demo.draw_video(str(file), options.out_dir)
        else:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                overlay = overlay.with_suffix('.png')
            Image.fromarray(demo(demo.read(str(file)))).save(overlay)
        print(overlay, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
