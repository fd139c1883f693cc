"""A labelled sheet of the clusters that the backbone finds in a photograph.

In a notebook::

    from clustr_mm import ClusTR
    from clustr_mm.visualization import show_clusters
    show_clusters(ClusTR('small'), 'photo.jpg')

A model of one of the libraries does as well: its own normalisation is then used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor, nn

from clustr_mm.datasets.pixels import as_photo
from clustr_mm.models import ClusTR
from clustr_mm.visualization.overlay import draw_clusters
from clustr_mm.visualization.views import BlockView, view_blocks

Photo = str | os.PathLike | np.ndarray | Image.Image

_IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr_to_rgb=True)
_CELL = 3.4  # inches of a cell's longer side
_DPI = 110


def show_clusters(
    model: nn.Module,
    photo: Photo,
    stages: Sequence[int] | None = None,
    blocks: Sequence[int] = (-1,),
    scales: Sequence[int] | None = None,
    side: int | None = 224,
    title: str | None = None,
    preprocessor: Any = None,
) -> Image.Image:
    """Draws what a model groups in a photograph; a notebook shows the result by itself.

    Args:
        model: A ``ClusTR``, or a model of one of the libraries with one as ``backbone``.
        photo: A file, a PIL image, (H, W, 3) RGB, or (H, W, C) bands for a model of as many.
        stages: Numbers of stages, from 1; None for all with cluster attention.
        blocks: Numbers of blocks of each stage, from 1, or -1 for the last and so on; empty for
            all.
        scales: Which scales, from 1, the coarsest; None for all.
        side: The shorter side that a larger photograph is brought to, in pixels: the more, the
            more and the smaller clusters. None leaves it as it is.
        title: A line above the sheet; None for the file's name.
        preprocessor: A data preprocessor, or its config, whose normalisation to use; None for the
            model's own, or ImageNet's where it has none.

    Raises:
        ValueError: If the model has no ClusTR, or a stage, block or scale does not exist.
        OSError: If the file is no image.
    """
    backbone = model if isinstance(model, ClusTR) else getattr(model, 'backbone', None)
    if not isinstance(backbone, ClusTR):
        raise ValueError(f'model is a {type(model).__name__} without ClusTR as its backbone')
    if title is None:
        title = os.path.basename(photo) if isinstance(photo, str | os.PathLike) else ''
    image = read_photo(photo, side)
    if preprocessor is None:
        preprocessor = getattr(model, 'data_preprocessor', None)
    pixels = normalise(image, preprocessor)
    views = view_blocks(backbone, pixels.to(next(backbone.parameters()).device), stages, blocks)
    return draw_sheet(as_photo(image), views, scales, title)


def read_photo(photo: Photo, side: int | None) -> np.ndarray:
    """Reads a photograph, upright, and shrinks it if its shorter side is longer than ``side``.

    Returns:
        (H, W, 3) uint8, RGB; or an array's own bands and type.
    """
    if isinstance(photo, str | os.PathLike):
        with Image.open(photo) as file:
            return read_photo(ImageOps.exif_transpose(file), side)
    if isinstance(photo, Image.Image):
        # 16 bits and floats would be cut off, not scaled.
        wide = photo.mode.startswith(('I', 'F'))
        photo = as_photo(np.asarray(photo if wide else photo.convert('RGB')))
    if side is None or min(photo.shape[:2]) <= side:
        return photo
    factor = side / min(photo.shape[:2])
    size = [round(length * factor) for length in photo.shape[:2]]
    bands = torch.from_numpy(np.atleast_3d(photo).astype(np.float32)).permute(2, 0, 1)[None]
    bands = nn.functional.interpolate(bands, size, mode='bicubic', antialias=True)
    small = bands[0].permute(1, 2, 0).numpy().reshape(*size, *photo.shape[2:])
    if photo.dtype.kind in 'iu':
        limits = np.iinfo(photo.dtype)
        small = small.round().clip(limits.min, limits.max)
    return small.astype(photo.dtype)


def normalise(image: np.ndarray, preprocessor: Any = None) -> Tensor:
    """Turns a photograph (H, W, C), RGB or other bands, into what a network takes.

    Args:
        image: The photograph.
        preprocessor: A model's data preprocessor, or a config's; None for ImageNet's mean and
            spread.

    Returns:
        (1, C, H, W), float32.
    """
    settings = _IMAGENET if preprocessor is None else preprocessor

    def setting(*names: str) -> Any:
        get = settings.get if isinstance(settings, Mapping) else partial(getattr, settings)
        return next((value for name in names if (value := get(name, None)) is not None), None)

    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)  # (C, H, W)
    # The libraries load BGR, and say, each in its own word, that a network wants RGB.
    wants_rgb = setting('bgr_to_rgb', 'to_rgb', '_channel_conversion', 'channel_conversion')
    if len(pixels) == 3 and not wants_rgb:
        pixels = pixels.flip(0)
    for key, apply in (('mean', torch.sub), ('std', torch.div)):
        if (value := setting(key)) is not None:
            pixels = apply(pixels, torch.as_tensor(value, device='cpu').float().view(-1, 1, 1))
    return pixels[None]


def draw_sheet(
    photo: np.ndarray,
    views: Sequence[BlockView],
    scales: Sequence[int] | None = None,
    title: str = '',
) -> Image.Image:
    """Draws a row a block of what ``view_blocks`` saw in a photograph, (H, W, 3) uint8, RGB.

    A row has the centres, each scale's clusters and their sizes, and the tokens' weights; the
    ``scales`` are as for ``show_clusters``.
    """
    count = len(views[0].labels)
    wanted = list(scales or range(1, count + 1))
    for scale in wanted:
        if not 1 <= scale <= count:
            raise ValueError(f'scale is {scale}; use 1 (the coarsest) to {count}')
    height, width = photo.shape[:2]
    shorter, longer = sorted((width, height))
    inches = _CELL * min(max(longer / shorter / 2, 1), 3)  # a strip's cell is longer
    # However flat the photograph is, there is room for the titles.
    cell = np.maximum(np.array([width, height]) * inches / longer, (2.7, 2.0))
    columns = 2 + 2 * len(wanted)
    # Room for a row's titles, for colour bars beside the maps, and for the sheet's title.
    size = (columns * (cell[0] + 0.35) + 0.4, len(views) * (cell[1] + 0.55) + 0.5)
    figure = Figure(figsize=size, dpi=_DPI, layout='constrained')
    figure.suptitle(title, fontsize=15)
    for view, row in zip(views, np.atleast_2d(figure.subplots(len(views), columns)), strict=True):
        h, w = view.weights.shape
        bare_axes(row[0], photo, _name_centres(view, wanted))
        row[0].set_ylabel(f'stage {view.stage}, block {view.block} of {view.depth}', fontsize=12)
        windows = f', {view.windows} windows' if view.windows > 1 else ''
        row[0].set_xlabel(f'{h} x {w} tokens{windows}', fontsize=11)
        _mark_centres(row[0], photo, view, wanted)
        for index, scale in enumerate(wanted):
            labels = view.labels[scale - 1]
            m = len(view.centres[scale - 1])
            regions, sizes = row[1 + 2 * index], row[2 + 2 * index]
            if m == labels.size:
                bare_axes(regions, photo, f'{m} clusters: each token its own')
                sizes.set_axis_off()
                continue
            bare_axes(regions, draw_clusters(photo, labels), f'{m} clusters')
            members = np.bincount(labels.ravel(), minlength=m)
            most = int(members.max())
            name = f'tokens in the cluster: {members.min()} to {most}'
            _show_map(sizes, members[labels], photo, name, (1, max(2, most)), 'viridis')
        relative = view.weights / view.weights.mean()
        # The mean in the middle of the colours, and equal factors at equal distance from it.
        spread = max(1.05, relative.max(), 1 / relative.min())
        name = f'token weight / mean: {relative.min():.2g} to {relative.max():.2g}'
        _show_map(row[-1], relative, photo, name, (1 / spread, spread), 'RdBu_r')
    return Image.fromarray(rendered(figure))


def rendered(figure: Figure) -> np.ndarray:
    """Draws a figure: (H, W, 3) uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def bare_axes(axes: Axes, picture: np.ndarray, title: str, **how: Any) -> Any:
    """Shows a picture without an axis; returns matplotlib's image."""
    image = axes.imshow(picture, **how)
    axes.set_title(title, fontsize=12)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def _show_map(
    axes: Axes, values: np.ndarray, photo: np.ndarray, title: str, limits: tuple[float, float],
    colors: str,
) -> None:  # fmt: skip
    """Shows values (h, w) as a heat map of the photograph's size, its logarithmic scale beside."""
    how = dict(extent=(0, photo.shape[1], photo.shape[0], 0), interpolation='nearest')
    picture = bare_axes(axes, values, title, cmap=colors, norm=LogNorm(*limits), **how)
    bar = axes.figure.colorbar(picture, cax=axes.inset_axes((1.02, 0, 0.04, 1)))
    ticks = np.geomspace(*limits, 3).tolist()
    bar.set_ticks(ticks, labels=[f'{tick:.2g}' if tick < 10 else f'{tick:.0f}' for tick in ticks])
    bar.minorticks_off()


def _name_centres(view: BlockView, scales: Sequence[int]) -> str:
    """How many centres there are, and how they are marked."""
    first, *others = (len(view.centres[scale - 1]) for scale in sorted(scales))
    small = [str(count) for count in others if count < view.weights.size]
    return f'centres: {first} large' + (f', {", ".join(small)} small' if small else '')


def _mark_centres(axes: Axes, photo: np.ndarray, view: BlockView, scales: Sequence[int]) -> None:
    """Marks the centres, the coarser scale's larger."""
    h, w = view.weights.shape
    for scale in reversed(scales):
        rows, columns = view.centres[scale - 1].T
        if len(rows) == view.weights.size:
            continue  # every token
        x = (columns + 0.5) * photo.shape[1] / w - 0.5
        y = (rows + 0.5) * photo.shape[0] / h - 0.5
        first = scale == min(scales)
        axes.scatter(x, y, s=26 if first else 7, c='#ffd400' if first else 'white',
                     edgecolors='black', linewidths=0.7 if first else 0.4)  # fmt: skip
