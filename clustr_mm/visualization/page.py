"""A web page that shows what a model predicts in a photograph and what its backbone groups there.

The page is gradio's (``pip install clustr-mm[web]``), told to keep to itself: it reports nothing,
and loads nothing from other hosts, neither in the server nor in the browser.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from clustr_mm.engine import UserError
from clustr_mm.engine.inference import Demo
from clustr_mm.models import ClusterAttention, ClusTR
from clustr_mm.visualization.clusters import normalise, read_photo
from clustr_mm.visualization.overlay import draw_clusters
from clustr_mm.visualization.views import clustering_blocks, view_blocks

_PIXELS = 64_000_000  # that a photograph may have
_FILE_SIZE = '64mb'
_LONGEST = 1280  # pixels of a photograph's longer side, to which larger ones are brought
_KEPT = 3600  # seconds that the server keeps an uploaded or drawn picture


class Explorer:
    """A model that shows what it predicts in a photograph, and what it groups.

    Args:
        demo: The model.
        side: The shorter side that a photograph is brought to for the clusters, in pixels.

    Attributes:
        depths: How many blocks each stage with clusters has, by the stage's number, from 1.
        scales: How many scales the clusters have.

    Raises:
        UserError: If the model's backbone has no clusters.
    """

    def __init__(self, demo: Demo, side: int = 224) -> None:
        backbone = getattr(demo.model, 'backbone', None)
        blocks = clustering_blocks(backbone) if isinstance(backbone, ClusTR) else {}
        if not blocks:
            raise UserError('the model has no ClusTR with clusters as its backbone; give another')
        self.demo = demo
        self.side = side
        self.depths = {stage: len(each) for stage, each in blocks.items()}
        self.scales = max(
            len(cast(ClusterAttention, each[0].attn).scales) for each in blocks.values()
        )

    def predict(self, photo: Image.Image) -> Image.Image:
        """Draws what the model predicts; a small photograph is enlarged."""
        with tempfile.TemporaryDirectory() as folder:
            before, after = os.path.join(folder, 'photo.png'), os.path.join(folder, 'overlay.png')
            photo.save(before)
            self.demo(before, after)
            with Image.open(after) as drawn:
                return drawn.convert('RGB')

    def group(
        self, photo: Image.Image, stage: int, block: int, scale: int, side: int = 512
    ) -> tuple[Image.Image, str]:
        """Draws the clusters of one stage, block and scale, all counted from 1.

        Returns:
            The picture, with a shorter side of ``side`` pixels or more, and a line on it.

        Raises:
            ValueError: If there is no such stage, block or scale.
        """
        if not 1 <= scale <= self.scales:
            raise ValueError(f'scale is {scale}; use 1 (the coarsest) to {self.scales}')
        model = self.demo.model
        backbone = cast(ClusTR, model.backbone)
        pixels = normalise(read_photo(photo, self.side), getattr(model, 'data_preprocessor', None))
        device = next(backbone.parameters()).device
        (view,) = view_blocks(backbone, pixels.to(device), [stage], [block])
        labels, count = view.labels[scale - 1], len(view.centres[scale - 1])
        h, w = labels.shape
        caption = f'Stage {stage}, block {block} of {view.depth}, scale {scale}: '
        if count == labels.size:
            caption += f'each of the {h} x {w} tokens is a cluster of its own'
        else:
            caption += f'{count} clusters of {h} x {w} tokens'
        return Image.fromarray(draw_clusters(np.asarray(photo), labels, side)), caption


def read_upload(path: str) -> Image.Image:
    """Reads a photograph that a stranger sent, upright, at most 1,280 pixels long.

    Raises:
        UserError: If it cannot be read, or is too large.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
        photo = read_photo(path, None) if width * height <= _PIXELS else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            'This file is no image that can be read. Give a photograph, such as a JPEG or a PNG.'
        ) from error
    if photo is None:
        raise UserError(
            f'The photograph is too large: {width} x {height} pixels. '
            f'Give one of at most {_PIXELS // 1_000_000} million pixels.'
        )
    photo.thumbnail((_LONGEST, _LONGEST))
    return photo


def import_gradio() -> Any:
    """Imports gradio, which reports to its makers unless told not to before.

    Raises:
        UserError: If it is not installed.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "the web page needs gradio, which is not here; pip install 'clustr-mm[web]'"
        ) from error
    return gradio


def make_page(explorer: Explorer, title: str, about: str) -> Any:
    """Lays out the page.

    Args:
        explorer: What it shows.
        title: Its title.
        about: A line below the title.

    Returns:
        The page, a ``gradio.Blocks``.

    Raises:
        UserError: If gradio is not installed.
    """
    gr = import_gradio()

    def blocks_of(stage: int) -> Any:
        depth = explorer.depths[stage]
        return gr.Dropdown(choices=list(range(1, depth + 1)), value=depth)

    def run(path: str | None, stage: int, block: int, scale: int) -> tuple[Any, ...]:
        try:
            if path is None:
                raise UserError('No photograph is given. Choose a file first.')
            photo = read_upload(path)
            prediction = explorer.predict(photo)
            side = min(prediction.size)
            clusters, caption = explorer.group(photo, stage, block, scale, side)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except torch.cuda.OutOfMemoryError as error:
            raise gr.Error(
                'The photograph does not fit into memory. Give a smaller one.'
            ) from error
        except Exception as error:  # shown here and, with its traceback, in the terminal
            name = type(error).__name__
            raise gr.Error(f'The model failed on this photograph. {name}: {error}') from error
        size = f'Drawn over the photograph at {photo.width} x {photo.height} pixels'
        return prediction, clusters, size, caption

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        gr.Markdown(f'# {title}\n{about}')
        with gr.Row():
            upload = gr.File(
                label='Photograph',
                elem_id='photograph',
                file_types=['image'],
                type='filepath',
                height=150,
                scale=2,
            )
            with gr.Column(scale=3), gr.Group(), gr.Row():
                stages = list(explorer.depths)
                stage = gr.Radio(
                    stages, value=stages[0], label='Stage of the clusters', elem_id='stage'
                )
                block = gr.Dropdown(
                    list(range(1, explorer.depths[stages[0]] + 1)),
                    value=explorer.depths[stages[0]],
                    label='Block of the stage',
                    elem_id='block',
                )
                scales = [
                    ('1 (coarsest)', 1),
                    *((str(n), n) for n in range(2, explorer.scales + 1)),
                ]
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
                            show_label=False,  # it would cover a corner
                            buttons=[],
                        )
                    )
                    captions.append(gr.Markdown(elem_id=f'{name.lower()}-caption'))
        stage.change(blocks_of, stage, block, api_visibility='private', show_progress='hidden')
        button.click(
            run,
            [upload, stage, block, scale],
            [*pictures, *captions],
            api_visibility='private',
            show_progress_on=pictures,
        )
    return page


def serve(page: Any, host: str, port: int) -> str:
    """Starts the server of a page, in threads of its own.

    Args:
        page: What :func:`make_page` returned.
        host: The address to listen on.
        port: The port.

    Returns:
        The page's address.

    Raises:
        UserError: If the address cannot be listened on.
    """
    gr = import_gradio()
    # The browser's own fonts; nothing of the machine's settings opens the page to the outside.
    fonts = ['system-ui', 'sans-serif']
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=gr.themes.Default(font=fonts, font_mono=['monospace']),
            max_file_size=_FILE_SIZE,
            footer_links=[],
            inbrowser=False,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise UserError(
            f'cannot listen on {host}, port {port}: the port is taken, or the address is not '
            "this machine's; give another --port or --host"
        ) from error
    return address
