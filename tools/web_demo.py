"""Shows a web page that takes a photograph: what a model predicts in it, beside what it groups.

    python tools/web_demo.py TASK CONFIG CHECKPOINT [--host 127.0.0.1] [--port 7860]

TASK is classification, detection, pose or segmentation. A pose model takes the whole image for one
person, unless --det-config and --det-checkpoint name a detector. Only this machine sees the page,
unless --host says otherwise: --host 0.0.0.0 shows it to everyone who can reach the machine. The
page needs gradio: pip install 'clustr-mm[web]'. Ctrl-C ends it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.inference import add_demo_options, demo_from
from clustr_mm.engine.options import Parser
from clustr_mm.visualization.page import Explorer, import_gradio, make_page, serve


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_demo_options(parser)
    parser.add_argument('--host', default='127.0.0.1', help='to listen on (127.0.0.1)')
    parser.add_argument('--port', type=int, default=7860, help='to listen on (7860)')
    parser.add_argument(
        '--side', type=int, default=224, metavar='PIXELS',
        help='the shorter side that photographs are brought to for the clusters (224)',
    )  # fmt: skip
    options = parser.parse_args(argv)
    if not 1 <= options.port <= 65535:
        raise UserError(f'--port is {options.port}; use 1 to 65535')
    if options.side < 1:
        raise UserError(f'--side is {options.side}; use at least 1')
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    import_gradio()  # before the model is loaded: it is the quicker to fail
    explorer = Explorer(demo_from(options), options.side)
    config, checkpoint = Path(options.config).stem, Path(options.checkpoint).name
    about = f'{options.task.capitalize()} by `{config}`, `{checkpoint}`'
    page = make_page(explorer, 'ClusTR: predictions and clusters', about)
    print(
        f'open {serve(page, options.host, options.port)} in a browser; Ctrl-C ends it', flush=True
    )
    page.block_thread()


if __name__ == '__main__':
    sys.exit(run_tool(main))
