"""A display list for the mini data set: shapes first, pixels later.

A thing is a list of `Shape`s in image coordinates (pixels, x right, y down, integers at pixel
centres). Its mask comes from the list before a pixel is painted, so that the scene can refuse a
place that would hide somebody else, and the painted edge and the mask's edge are the same edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Color = tuple[int, int, int]
Pair = Sequence[float] | np.ndarray  # x and y
Texture = Callable[[int, int], np.ndarray]  # (height, width) to (height, width, 3) uint8

_SHIFT = 4  # cv2's fixed-point bits: drawing is exact to 1/16 pixel


@dataclass(frozen=True)
class Shape:
    """A filled polygon (`width` None) or a line with round ends.

    Args:
        points: (n, 2) float, x and y in pixels.
        fill: an RGB colour, or for polygons a texture that paints their bounding box.
        width: line width in pixels, None for a polygon.
        part: which part of a figure this is (tells what hides which keypoint).
    """

    points: np.ndarray
    fill: Color | Texture
    width: float | None = None
    part: int = 0


def ellipse(center: Pair, axes: Pair, angle: float = 0.0, points: int = 24) -> np.ndarray:
    """Outline of an ellipse.

    Args:
        center: x and y in pixels.
        axes: half axes in pixels.
        angle: rotation in radians, clockwise in the picture.
        points: number of corners.

    Returns:
        (points, 2) float64.
    """
    t = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
    x, y = axes[0] * np.cos(t), axes[1] * np.sin(t)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([center[0] + c * x - s * y, center[1] + s * x + c * y], axis=1)


def place(points: np.ndarray, origin: Pair, scale: float, angle: float) -> np.ndarray:
    """Rotate, scale and move (n, 2) points from a thing's own coordinates into the picture."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    x, y = points[:, 0], points[:, 1]
    return np.stack([origin[0] + c * x - s * y, origin[1] + s * x + c * y], axis=1)


def _draw(image: np.ndarray, shape: Shape, color: int | Color, line: int = cv2.LINE_AA) -> None:
    """Draw one shape into `image`, in place, with smooth edges or another kind of cv2's lines."""
    points = np.round(shape.points * (1 << _SHIFT)).astype(np.int32)
    if shape.width is None:
        cv2.fillPoly(image, [points], color, line, _SHIFT)
    else:
        width = max(1, round(shape.width))
        cv2.polylines(image, [points], False, color, width, line, _SHIFT)


def bounds(shapes: Sequence[Shape], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The part of the picture that a display list can touch.

    Args:
        shapes: a thing's display list.
        size: height and width of the picture in pixels.

    Returns:
        (x0, y0, x1, y1), ends exclusive, inside the picture; None if all of it lies outside.
    """
    margins = [2.0 if s.width is None else s.width / 2 + 2.0 for s in shapes]
    pairs = list(zip(shapes, margins, strict=True))
    low = np.min([s.points.min(axis=0) - m for s, m in pairs], axis=0)
    high = np.max([s.points.max(axis=0) + m for s, m in pairs], axis=0)
    x0, y0 = max(0, int(low[0])), max(0, int(low[1]))
    x1, y1 = min(size[1], int(high[0]) + 1), min(size[0], int(high[1]) + 1)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def rasterize(
    shapes: Sequence[Shape], box: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and part map of a display list.

    Args:
        shapes: a thing's display list.
        box: (x0, y0, x1, y1) as `bounds` gives it.

    Returns:
        (y1 - y0, x1 - x0) bool: pixels at least half covered; and uint8: the part of the
        topmost shape there.
    """
    x0, y0, x1, y1 = box
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    parts = np.zeros_like(mask)
    offset = np.array([x0, y0], np.float64)
    for shape in shapes:
        moved = Shape(shape.points - offset, shape.fill, shape.width)
        _draw(mask, moved, 255)
        _draw(parts, moved, shape.part, cv2.LINE_8)  # a part number must not be mixed with another
    return mask > 127, parts


def paint(image: np.ndarray, shapes: Sequence[Shape]) -> None:
    """Paint a display list into an (H, W, 3) uint8 RGB picture, in place, first shape first."""
    for shape in shapes:
        if not callable(shape.fill):
            _draw(image, shape, shape.fill)
            continue
        box = bounds([shape], image.shape[:2])
        if box is None:
            continue
        x0, y0, x1, y1 = box
        alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
        _draw(alpha, Shape(shape.points - np.array([x0, y0]), shape.fill, shape.width), 255)
        patch, over = image[y0:y1, x0:x1], shape.fill(y1 - y0, x1 - x0)
        # Integers only: the same bits on every machine and numpy.
        a = alpha[..., None].astype(np.int32)
        mixed = patch.astype(np.int32) * (255 - a) + over.astype(np.int32) * a
        patch[...] = ((mixed + 127) // 255).astype(np.uint8)
