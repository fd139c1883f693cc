"""Pictures side by side, with titles: rows are images, columns are views of them."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_GAP = 10  # pixels between cells, and round the sheet


def make_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str],
    legend: Sequence[tuple[str, Sequence[int]]] = (),
    cell: int = 300,
    title: str = '',
) -> np.ndarray:
    """Lays pictures out in a titled grid.

    Args:
        rows: For every row, one (H, W, 3) uint8 RGB picture a column; sizes may differ.
        columns: A title for each column.
        legend: Names and RGB colours to explain below the grid.
        cell: Height and width of a cell in pixels; a picture is scaled to fit.
        title: A line above all.

    Returns:
        np.ndarray: (H, W, 3) uint8, RGB.

    Raises:
        ValueError: If a row has another number of pictures than there are titles.
    """
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f'row {index} has {len(row)} pictures for {len(columns)} columns')
    font, large = _font(cell // 17), _font(cell // 14)
    line = round(1.5 * font.size)
    head = _GAP + (round(1.6 * large.size) if title else 0)
    width = _GAP + len(columns) * (cell + _GAP)
    places, legend_height = _place_legend(legend, font, width)
    top = head + line
    height = top + len(rows) * (cell + _GAP) + legend_height
    sheet = Image.new('RGB', (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), title, _INK, large)
    for column, name in enumerate(columns):
        left = _GAP + column * (cell + _GAP)
        draw.text((left + cell / 2, head + line / 2), name, _INK, font, anchor='mm')
        for index, row in enumerate(rows):
            picture = _fit(row[column], cell)
            offset = (cell - picture.width) // 2, (cell - picture.height) // 2
            sheet.paste(picture, (left + offset[0], top + index * (cell + _GAP) + offset[1]))
    for (name, color), (x, y) in zip(legend, places, strict=True):
        y += height - legend_height
        box = (x, y + line // 6, x + font.size, y + line // 6 + font.size)
        draw.rectangle(box, tuple(int(each) for each in color), _INK)
        draw.text((x + 1.4 * font.size, y + line / 2), name, _INK, font, anchor='lm')
    return np.asarray(sheet)


def save_picture(picture: np.ndarray, path: str) -> None:
    """Writes a picture, and the folders above it.

    Args:
        picture: (H, W, 3) uint8, RGB.
        path: Where to; the extension says the format.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(picture).save(path)


def _fit(picture: np.ndarray, cell: int) -> Image.Image:
    """Scales a picture to fit into a square cell."""
    image = Image.fromarray(picture)
    factor = cell / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A typeface that every machine has: matplotlib, which mmengine needs, brings it."""
    path = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(path, max(size, 10))


def _place_legend(
    legend: Sequence[tuple[str, Sequence[int]]], font: ImageFont.FreeTypeFont, width: int
) -> tuple[list[tuple[int, int]], int]:
    """Breaks the legend into lines: left upper corners from the legend's top, and its height."""
    line = round(1.5 * font.size)
    places, x, y = [], _GAP, 0
    for name, _ in legend:
        needed = round(1.4 * font.size + font.getlength(name) + 1.5 * font.size)
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + line
        places.append((x, y))
        x += needed
    return places, (y + line + _GAP) if legend else 0
