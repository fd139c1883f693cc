"""Shows a web page that takes a photograph: what a model predicts in it, beside what it groups.

    python tools/web_demo.py TASK CONFIG CHECKPOINT [--host 127.0.0.1] [--port 7860]

TASK is classification, detection, pose or segmentation. A pose model takes the whole image for one
person, unless --det-config and --det-checkpoint name a detector. Only this machine sees the page,
unless --host says otherwise: --host 0.0.0.0 shows it to everyone who can reach the machine. The
page needs gradio: pip install 'clustr-mm[web]'. Ctrl-C ends it. Nothing is reported, and nothing
loaded from other hosts, neither by the server nor in the browser.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from clustr_mm.datasets.pixels import as_photo, rgb_or_bands
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.inference import Demo, add_demo_options, demo_from
from clustr_mm.engine.options import Parser
from clustr_mm.models import ClusTR
from clustr_mm.visualization.clusters import normalise, read_photo
from clustr_mm.visualization.overlay import draw_clusters
from clustr_mm.visualization.views import clustering_blocks, view_blocks

PIXELS = 64_000_000  # that a photograph may have
FILE_SIZE = '64mb'
SHORTEST = 720  # pixels of a photograph's shorter side, to which larger ones are brought
KEPT = 3600  # seconds that the server keeps an uploaded or drawn picture


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


def read_upload(demo: Demo, path: str) -> np.ndarray:
    """Reads a file that a stranger sent, (H, W, C) as the model's pipeline loads it."""
    broken = 'This file is no image that can be read. Give a photograph, such as a JPEG or a PNG.'
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height > PIXELS:
                raise Image.DecompressionBombError(f'{width} x {height} pixels')
            file.load()  # all of it: OpenCV makes do with a part
    except Image.DecompressionBombError as error:
        raise UserError(
            f'The photograph is too large: {error}. '
            f'Give one of at most {PIXELS // 1_000_000} million pixels.'
        ) from error
    except UnidentifiedImageError:
        pass  # many bands, perhaps, which the model's pipeline knows
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(broken) from error
    try:
        return read_photo(demo.read(path), SHORTEST)
    except UserError as error:  # without the server's own path
        raise UserError(broken) from error


def group(
    model: Any, image: np.ndarray, stage: int, block: int, scale: int, side: int
) -> tuple[np.ndarray, str]:
    """Draws the clusters of one stage, block and scale, from 1; the picture, and a line on it."""
    bands = rgb_or_bands(image)
    pixels = normalise(read_photo(bands, side), model.data_preprocessor)
    device = next(model.parameters()).device
    (view,) = view_blocks(model.backbone, pixels.to(device), [stage], [block])
    labels, count = view.labels[scale - 1], len(view.centres[scale - 1])
    h, w = labels.shape
    found = f'{count} clusters of {h} x {w} tokens'
    if count == labels.size:
        found = f'each of the {h} x {w} tokens is a cluster of its own'
    caption = f'Stage {stage}, block {block} of {view.depth}, scale {scale}: {found}'
    return draw_clusters(as_photo(bands), labels), caption


def import_gradio() -> Any:
    """Imports gradio, which reports to its makers unless told not to before."""
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "the web page needs gradio, which is not here; pip install 'clustr-mm[web]'"
        ) from error
    return gradio


def make_page(gr: Any, demo: Demo, side: int, about: str) -> Any:
    """Lays out the page, a ``gradio.Blocks``."""
    backbone: Any = getattr(demo.model, 'backbone', None)
    blocks = clustering_blocks(backbone) if isinstance(backbone, ClusTR) else {}
    if not blocks:
        raise UserError('the model has no ClusTR with clusters as its backbone; give another')
    depths = {stage: len(each) for stage, each in blocks.items()}
    first = next(iter(depths))
    count = len(blocks[first][0].attn.scales)

    def blocks_of(stage: int) -> Any:
        return gr.Dropdown(choices=list(range(1, depths[stage] + 1)), value=depths[stage])

    def run(path: str | None, stage: int, block: int, scale: int) -> tuple[Any, ...]:
        try:
            if path is None:
                raise UserError('No photograph is given. Choose a file first.')
            image = read_upload(demo, path)
            clusters, caption = group(demo.model, image, stage, block, scale, side)
            size = f'Drawn over the photograph at {image.shape[1]} x {image.shape[0]} pixels'
            return demo(image), clusters, size, caption
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except torch.cuda.OutOfMemoryError as error:
            raise gr.Error(
                'The photograph does not fit into memory. Give a smaller one.'
            ) from error
        except Exception as error:  # shown here and, with its traceback, in the terminal
            name = type(error).__name__
            raise gr.Error(f'The model failed on this photograph. {name}: {error}') from error

    title = 'ClusTR: predictions and clusters'
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f'# {title}\n{about}')
        with gr.Row():
            upload = gr.File(
                label='Photograph', elem_id='photograph', file_types=['image'], type='filepath',
                height=150, scale=2,
            )  # fmt: skip
            with gr.Column(scale=3), gr.Group(), gr.Row():
                stage = gr.Radio(
                    list(depths), value=first, label='Stage of the clusters', elem_id='stage'
                )
                block = gr.Dropdown(
                    list(range(1, depths[first] + 1)), value=depths[first],
                    label='Block of the stage', elem_id='block',
                )  # fmt: skip
                scales = [('1 (coarsest)', 1), *((str(n), n) for n in range(2, count + 1))]
                scale = gr.Radio(scales, value=1, label='Scale', elem_id='scale')
        button = gr.Button('Run', variant='primary', elem_id='run')
        with gr.Row():
            pictures, captions = [], []
            for name in ('Prediction', 'Clusters'):
                with gr.Column():
                    gr.Markdown(f'### {name}')
                    pictures.append(
                        gr.Image(
                            label=name,
                            elem_id=name.lower(),
                            interactive=False,
                            format='png',
                            show_label=False,
                            buttons=[],  # they would cover its corners
                        )  # fmt: skip
                    )
                    captions.append(gr.Markdown(elem_id=f'{name.lower()}-caption'))
        stage.change(blocks_of, stage, block, api_visibility='private', show_progress='hidden')
        button.click(
            run, [upload, stage, block, scale], [*pictures, *captions], api_visibility='private',
            show_progress_on=pictures,
        )  # fmt: skip
    return page


def serve(gr: Any, page: Any, host: str, port: int) -> str:
    """Starts the server of a page, in threads of its own; its address."""
    # The browser's own fonts; nothing of the machine's settings opens the page to the outside.
    fonts = ['system-ui', 'sans-serif']
    closed = dict.fromkeys(
        ('inbrowser', 'share', 'ssr_mode', 'pwa', 'mcp_server', 'run_history', 'enable_monitoring'),
        False,
    )
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=gr.themes.Default(font=fonts, font_mono=['monospace']),
            max_file_size=FILE_SIZE,
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            **closed,
        )
    except OSError as error:
        raise UserError(
            f'cannot listen on {host}, port {port}: the port is taken, or the address is not '
            "this machine's; give another --port or --host"
        ) from error
    return address


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    gr = import_gradio()  # before the model is loaded: it is the quicker to fail
    config, checkpoint = Path(options.config).stem, Path(options.checkpoint).name
    about = f'{options.task.capitalize()} by `{config}`, `{checkpoint}`'
    page = make_page(gr, demo_from(options), options.side, about)
    address = serve(gr, page, options.host, options.port)
    print(f'open {address} in a browser; Ctrl-C ends it', flush=True)
    page.block_thread()


if __name__ == '__main__':
    sys.exit(run_tool(main))
