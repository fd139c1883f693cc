"""Shapes, colours and textures.

Coordinates are pixels, x right, y down, integers at pixel centres. Colour narrows down and never
decides: sky and water ('air') share a typical hue, as do bottle and vase ('vessel'), and ball and
clock ('disc'); one draw of five leaves it; wall, floor and clothes have any.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

Rng = np.random.Generator
Color = tuple[int, int, int]
Span = tuple[float, float]

_SHIFT = 4  # cv2's fixed-point bits: drawing is exact to 1/16 pixel
_HUES = dict(air=(0.5, 0.64), grass=(0.2, 0.38), vessel=(0.7, 0.82), disc=(0.92, 1.0),
             chair=(0.06, 0.11), book=(0.42, 0.48))  # fmt: skip


class Shape(NamedTuple):
    """A filled polygon, or a line of a width in pixels with round ends."""

    points: np.ndarray  # (n, 2) float, x and y in pixels
    color: Color  # RGB
    width: float | None = None
    part: int = 1  # of a figure: tells what hides which keypoint


def ellipse(center: ArrayLike, axes: ArrayLike, angle: float = 0, corners: int = 24) -> np.ndarray:
    """Outline of an ellipse with two half axes, turned clockwise by radians: (corners, 2)."""
    t = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    return place(np.stack([np.cos(t), np.sin(t)], axis=1) * np.asarray(axes), center, 1.0, angle)


def place(points: ArrayLike, origin: ArrayLike, scale: float, angle: float) -> np.ndarray:
    """Rotate, scale and move (n, 2) points from a thing's own coordinates into the picture."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return np.asarray(points) @ np.array([[c, s], [-s, c]]) + np.asarray(origin)


def draw(image: np.ndarray, shape: Shape, color: int | Color, line: int = cv2.LINE_AA) -> None:
    """Draw a shape into an (H, W) or (H, W, 3) uint8 picture, in place; `line` smooths edges."""
    points = [np.rint(shape.points * (1 << _SHIFT)).astype(np.int32)]
    if shape.width is None:
        cv2.fillPoly(image, points, color, line, _SHIFT)
    else:
        cv2.polylines(image, points, False, color, max(1, round(shape.width)), line, _SHIFT)


def random_color(rng: Rng, saturation: Span, value: Span, palette: str = '') -> Color:
    """A colour of any hue, or in four draws of five of the palette's."""
    hue = _HUES[palette] if palette and rng.random() < 0.8 else (0.0, 1.0)
    r, g, b = colorsys.hsv_to_rgb(*(float(rng.uniform(*each)) for each in (hue, saturation, value)))
    return round(r * 255), round(g * 255), round(b * 255)


def contrasting(rng: Rng, color: Color, tries: int = 4) -> Color:
    """A pale random colour: of a few, the one whose brightness differs most from `color`'s."""
    luma = np.array([0.3, 0.59, 0.11])
    others = [random_color(rng, (0.0, 0.4), (0.1, 1.0)) for _ in range(tries)]
    return max(others, key=lambda other: abs((np.array(other) - color) @ luma))


# Textures are (height, width, 3) uint8 RGB; `unit` is a 160th of the picture's short side, pixels.


def _noise(rng: Rng, height: int, width: int, cell_y: float, cell_x: float) -> np.ndarray:
    """Smooth noise with features of about (cell_y, cell_x) pixels: (height, width), -1 to 1."""
    grid = rng.random((round(height / cell_y) + 2, round(width / cell_x) + 2), dtype=np.float32)
    return cv2.resize(grid * 2 - 1, (width, height), interpolation=cv2.INTER_LINEAR)


def _mix(weight: np.ndarray, low: Color, high: Color) -> np.ndarray:
    """From colour `low` (weight 0) to `high` (weight 1): (h, w) to (h, w, 3) uint8."""
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return np.clip(a + weight[..., None].astype(np.float32) * (b - a), 0, 255).astype(np.uint8)


def _sky(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """A vertical gradient with soft clouds."""
    zenith, horizon = (random_color(rng, (0.05, 0.55), (0.45, 0.95), 'air') for _ in range(2))
    clouds = _noise(rng, height, width, 16 * unit, 45 * unit)
    clouds += 0.5 * _noise(rng, height, width, 8 * unit, 18 * unit)
    alpha = np.clip((clouds - rng.uniform(-0.1, 0.6)) * 1.4, 0, 0.8)[..., None]
    blue = _mix(np.linspace(0, 1, height)[:, None] * np.ones(width), zenith, horizon)
    return (blue * (1 - alpha) + rng.choice([255, 70]) * alpha).astype(np.uint8)


def _water(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Wavy level ripples that get finer towards the upper end, which is the far one."""
    y = np.arange(height)[:, None] / (8 * unit)
    wobble = _noise(rng, height, width, 7 * unit, 22 * unit)
    ripples = np.sin(rng.uniform(9, 14) * np.log1p(y) + 2.5 * wobble + rng.uniform(0, 6.28))
    value = 0.92 + rng.uniform(0.1, 0.2) * ripples + 0.8 * np.clip(ripples - 0.55, 0, 1)
    return _mix(value, (0, 0, 0), random_color(rng, (0.05, 0.55), (0.45, 0.95), 'air'))


def _grass(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Dense upright blades in patches, flatter far away."""
    blade = (max(1, round(unit)), 2 * max(1, round(2.5 * unit)) + 1)
    blades = cv2.blur(rng.random((height, width), dtype=np.float32) * 2 - 1, blade)
    value = 0.85 + rng.uniform(0.55, 0.85) * blades * np.linspace(0.55, 1.1, height)[:, None]
    value += 0.1 * _noise(rng, height, width, 18 * unit, 30 * unit)
    return _mix(value, (0, 0, 0), random_color(rng, (0.2, 0.8), (0.4, 0.85), 'grass'))


def _wall(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Rows of bricks or stones with mortar between, seen square on."""
    tall = rng.uniform(7, 13) * unit
    wide, joint = tall * rng.uniform(1.4, 2.6), max(1.0, rng.uniform(0.9, 1.5) * unit)
    brick = random_color(rng, (0.0, 0.4), (0.3, 0.95))
    y = np.arange(height)[:, None] + rng.uniform(0, tall)  # (h, 1)
    row = (y // tall).astype(int)
    x = np.arange(width) + row % 2 * (wide / 2)  # (h, w)
    shade = rng.uniform(0.78, 1.15, (64, 64))[row % 64, (x // wide).astype(int) % 64]
    out = _mix(shade, (0, 0, 0), brick)
    out[(y % tall < joint) | (x % wide < joint)] = contrasting(rng, brick)
    return out


def _floor(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Tiles or boards in perspective."""
    first = random_color(rng, (0.0, 0.4), (0.3, 0.95))
    # The vanishing line lies above the upper end, so that no row has endless detail.
    depth = 1.0 / (np.arange(height)[:, None] + rng.uniform(0.35, 0.8) * height)  # (h, 1)
    u = (np.arange(width) - rng.uniform(0.2, 0.8) * width) * depth * rng.uniform(5, 8)
    v = height * depth * rng.uniform(5, 8)
    tiles = (np.floor(u) + np.floor(v)) % 2
    boards = np.where(u % 1 < 0.08, 1.3, rng.random(64)[np.floor(u).astype(int) % 64] * 0.8)
    return _mix(tiles if rng.random() < 0.6 else boards, first, contrasting(rng, first))


TEXTURES = {'sky': _sky, 'water': _water, 'grass': _grass, 'wall': _wall, 'floor': _floor}
