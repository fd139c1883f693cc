"""Shows what a trained model predicts: overlays of an image, a folder or a video.

    python tools/demo.py TASK CONFIG CHECKPOINT INPUT [--out-dir demo]

TASK is classification, detection, pose or segmentation. A pose model asks where the persons are:
--box LEFT TOP WIDTH HEIGHT, once for each, or a detector by --det-config, --det-checkpoint and
--det-class; with neither, the whole image is one person.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from mmengine.logging import MMLogger

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.devices import choose_device
from clustr_mm.engine.inference import TASKS, load_demo, name_detector, run_demo
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.models.checkpoint import trust_checkpoints


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=sorted(TASKS), metavar='TASK')
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='a checkpoint that training wrote')
    parser.add_argument('input', help='an image, a video, or a folder of them')
    parser.add_argument('--out-dir', default='demo', metavar='DIR', help='of the overlays (demo)')
    parser.add_argument('--score', type=float, default=0.3, help='the lowest that is drawn (0.3)')
    parser.add_argument(
        '--box', nargs=4, type=float, action='append', default=[],
        metavar=('LEFT', 'TOP', 'WIDTH', 'HEIGHT'), help='a person, in pixels',
    )  # fmt: skip
    parser.add_argument('--det-config', help='a detector of persons, of mmdet')
    parser.add_argument('--det-checkpoint')
    parser.add_argument('--det-class', type=int, default=0, help='its class of persons (0)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='a GPU where there is one')
    add_trust(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    trust_checkpoints(options.trust_checkpoint)
    MMLogger.get_current_instance().setLevel('ERROR')
    detector = name_detector(
        options.task, options.det_config, options.det_checkpoint, options.det_class
    )
    if options.task != 'pose' and options.box:
        raise UserError(f'boxes and detectors are for pose, not for {options.task}; leave them out')
    if options.box and detector:
        raise UserError('both --box and a detector say where persons are; leave one out')
    draw = load_demo(
        options.task,
        options.config,
        options.checkpoint,
        choose_device(options.device),
        options.box,
        detector,
        options.score,
    )
    for overlay in run_demo(draw, options.input, options.out_dir):
        print(overlay, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
