"""Label maps over photographs: regions tinted in distinct colours, with borders."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

_GOLDEN = 0.618033988749895  # successive multiples spread over the circle of hues
_LIGHTNESS = (0.55, 0.38, 0.72)


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarges a picture (H, W, 3) that has fewer pixels than a square of ``side``, to as many."""
    factor = side / (image.shape[0] * image.shape[1]) ** 0.5
    if factor <= 1:
        return image
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def distinct_colors(count: int) -> np.ndarray:
    """Picks colours that can be told apart, the first few best: (count, 3) uint8, RGB."""
    colors = [
        colorsys.hls_to_rgb(index * _GOLDEN % 1, _LIGHTNESS[index % len(_LIGHTNESS)], 0.85)
        for index in range(count)
    ]
    return np.round(255 * np.asarray(colors).reshape(count, 3)).astype(np.uint8)


def enlarge_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a label map (h, w) to a size (H, W); a pixel takes the token that it lies in."""
    rows = np.arange(size[0]) * labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labels.shape[1] // size[1]
    return labels[rows[:, None], columns]


def find_borders(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Marks the pixels of a label map next to another region: (H, W) bool, ``width`` wide."""
    square = np.ones((width + 1, width + 1), np.uint8)
    place = (width // 2, width // 2)
    # float32 tells all labels below 2 ** 24 apart; OpenCV knows no wider integers.
    spread = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, square, anchor=place)
    return spread > 0


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
        (H, W, 3) uint8, RGB.
    """
    height, width = image.shape[:2]
    labels = enlarge_labels(labels, (height, width))
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

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (h, w) clusters of tokens, as ``ClusTR.cluster_maps`` gives them for one image.
        side: An image of fewer pixels than a square of this side is enlarged to as many, so that
            the borders stay thin.

    Returns:
        (H', W', 3) uint8, RGB.
    """
    image = enlarge(image, side)
    # Outlines in proportion to the tokens: many small regions would drown in thick ones.
    token = min(image.shape[0] / labels.shape[0], image.shape[1] / labels.shape[1])
    return paint_labels(image, labels, alpha=0.5, border=max(1, round(token / 14)))
