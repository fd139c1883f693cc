"""Shows a web page that takes a photograph: what a model predicts in it, beside what it groups.

    python tools/web_demo.py TASK CONFIG CHECKPOINT [--host 127.0.0.1] [--port 7860]

TASK is classification, detection, pose or segmentation. A pose model takes the whole image for one
person, unless --det-config and --det-checkpoint name a detector. Only this machine sees the page,
unless --host says otherwise: --host 0.0.0.0 shows it to everyone who can reach the machine. The
page needs gradio: pip install 'clustr-mm[web]'. Ctrl-C ends it.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import MMLogger

from clustr_mm.engine import run_tool
from clustr_mm.engine.devices import choose_device
from clustr_mm.engine.inference import TASKS, load_demo, name_detector
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.models.checkpoint import trust_checkpoints
from clustr_mm.visualization.page import Explorer, import_gradio, make_page, serve


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=sorted(TASKS), metavar='TASK')
    parser.add_argument('config', help="a config whose model's backbone is ClusTR")
    parser.add_argument('checkpoint', help='a checkpoint that training wrote')
    parser.add_argument('--host', default='127.0.0.1', help='to listen on (127.0.0.1)')
    parser.add_argument('--port', type=int, default=7860, help='to listen on (7860)')
    parser.add_argument('--score', type=float, default=0.3, help='the lowest that is drawn (0.3)')
    parser.add_argument(
        '--side', type=int, default=224, metavar='PIXELS',
        help='the shorter side that photographs are brought to for the clusters (224)',
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
    MMLogger.get_current_instance().setLevel('ERROR')
    trust_checkpoints(options.trust_checkpoint)
    import_gradio()  # before the model is loaded: it is the quicker to fail
    task, config, checkpoint = options.task, options.config, options.checkpoint
    detector = name_detector(task, options.det_config, options.det_checkpoint, options.det_class)
    demo = load_demo(
        task, config, checkpoint, choose_device(options.device), (), detector, options.score
    )
    about = f'{task.capitalize()} by `{Path(config).stem}`, `{Path(checkpoint).name}`'
    page = make_page(Explorer(demo, options.side), 'ClusTR: predictions and clusters', about)
    print(
        f'open {serve(page, options.host, options.port)} in a browser; Ctrl-C ends it', flush=True
    )
    page.block_thread()


if __name__ == '__main__':
    sys.exit(run_tool(main))
