"""Label maps over photographs: regions tinted in distinct colours, with borders."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

_GOLDEN = 0.618033988749895  # successive multiples spread over the circle of hues
_LIGHTNESS = (0.55, 0.38, 0.72)


def distinct_colors(count: int) -> np.ndarray:
    """Picks colours that can be told apart, the first few best.

    Args:
        count: How many.

    Returns:
        np.ndarray: (count, 3) uint8, RGB.
    """
    colors = [
        colorsys.hls_to_rgb(index * _GOLDEN % 1, _LIGHTNESS[index % len(_LIGHTNESS)], 0.85)
        for index in range(count)
    ]
    return np.round(255 * np.asarray(colors).reshape(count, 3)).astype(np.uint8)


def enlarge_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a label map to an image's size; every pixel takes the token that it lies in.

    Args:
        labels: (h, w) integers.
        size: (H, W) in pixels.

    Returns:
        np.ndarray: (H, W) integers.
    """
    rows = np.arange(size[0]) * labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labels.shape[1] // size[1]
    return labels[rows[:, None], columns]


def find_borders(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Marks the pixels next to another region.

    Args:
        labels: (H, W) integers.
        width: How wide a border is, in pixels.

    Returns:
        np.ndarray: (H, W) bool.
    """
    borders = np.zeros(labels.shape, dtype=bool)
    for step in range(1, width // 2 + width % 2 + 1):
        below = labels[step:] != labels[:-step]
        right = labels[:, step:] != labels[:, :-step]
        borders[:-step] |= below
        borders[:, :-step] |= right
        if 2 * step <= width:
            borders[step:] |= below
            borders[:, step:] |= right
    return borders


def paint_labels(
    image: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray | Sequence[Sequence[int]] | None = None,
    alpha: float = 0.55,
    border: int | None = None,
    ignore: int | None = None,
) -> np.ndarray:
    """Tints every region of a label map over its image and outlines it.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (h, w) integers, of any size: clusters of tokens, or classes of pixels.
        colors: (M, 3) RGB from 0 to 255, by label; None takes :func:`distinct_colors`.
        alpha: How much of the colour covers the image, 0 to 1.
        border: Width of the outlines in pixels; None takes about 1/160 of the shorter side.
        ignore: A label to leave as the image has it.

    Returns:
        np.ndarray: (H, W, 3) uint8, RGB.
    """
    height, width = image.shape[:2]
    labels = enlarge_labels(np.asarray(labels), (height, width))
    if colors is None:
        colors = distinct_colors(int(labels.max()) + 1)
    palette = np.asarray(colors, dtype=np.float32)
    inside = np.ones(labels.shape, dtype=bool) if ignore is None else labels != ignore
    painted = image.astype(np.float32)
    painted[inside] = (1 - alpha) * painted[inside] + alpha * palette[labels[inside]]
    if border is None:
        border = max(1, round(min(height, width) / 160))
    if border:
        painted[find_borders(labels, border)] = 255
    return np.round(painted).astype(np.uint8)


def draw_clusters(image: np.ndarray, labels: np.ndarray, side: int = 512) -> np.ndarray:
    """Draws the clusters of one stage, block and scale over the image that they are of.

    A small image is enlarged first, so that the borders stay thin.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (h, w) clusters of tokens, as ``ClusTR.cluster_maps`` gives them for one image.
        side: The shorter side that the picture has at least, in pixels.

    Returns:
        np.ndarray: (H', W', 3) uint8, RGB.
    """
    factor = max(1.0, side / min(image.shape[:2]))
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    enlarged = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    # Outlines in proportion to the tokens: many small regions would drown in thick ones.
    token = min(enlarged.shape[0] / labels.shape[0], enlarged.shape[1] / labels.shape[1])
    return paint_labels(enlarged, labels, alpha=0.5, border=max(1, round(token / 14)))
