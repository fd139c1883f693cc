"""The things other than persons.

Bottle and vase have the same sizes and colours, as have ball and clock: not so shape and pattern.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from clustr_mm.datasets.mini.drawing import Rng, Shape, contrasting, ellipse, place, random_color


class _Thing(NamedTuple):
    """A kind of thing, one high: it stands at y = 0, or has its centre there if it is a disc."""

    palette: str
    heights: tuple[float, float]  # in short sides of the picture
    tilt: float  # largest turn in radians
    # From behind: colour (0 is the main one, of three), points, and width of a line.
    parts: list[tuple[int, np.ndarray, float | None]]


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _mirrored(*right: tuple[float, float]) -> np.ndarray:
    return np.concatenate([right, (np.array(right) * [-1, 1])[::-1]])


def _rays(count: int, inner: float, outer: float) -> list[np.ndarray]:
    angles = np.arange(count) * 2 * np.pi / count
    return [np.outer((inner, outer), (np.cos(t), np.sin(t))) for t in angles]


_BOTTLE = _mirrored((0.06, -1), (0.06, -0.76), (0.17, -0.6), (0.17, -0.02), (0.15, 0))
_VASE = _mirrored((0.2, -1), (0.13, -0.93), (0.09, -0.83), (0.1, -0.76), (0.2, -0.63), (0.28, -0.5),
                  (0.28, -0.4), (0.24, -0.25), (0.15, -0.06), (0.16, 0))  # fmt: skip
_ZIGZAG = np.array([(0.07 * i - 0.25, -0.45 + 0.06 * (-1) ** i) for i in range(8)])
_SEAT = np.array([[-0.34, -0.5], [0.2, -0.5], [0.34, -0.4], [-0.2, -0.4]])
_LEGS = [(-0.32, -0.14), (0.18, -0.14), (-0.19, -0.04), (0.31, -0.04)]
_THINGS = {
    'bottle': _Thing('vessel', (0.42, 0.68), 0.15, [
        (0, _BOTTLE, None), (1, _box(-0.075, -1, 0.075, -0.9), None),
        (2, _box(-0.165, -0.42, 0.165, -0.2), None),
    ]),
    'vase': _Thing('vessel', (0.42, 0.68), 0.15, [
        (0, _VASE, None), (1, ellipse((0, -1), (0.2, 0.035)), None), (2, _ZIGZAG, 0.05),
    ]),
    'chair': _Thing('chair', (0.46, 0.72), 0.0, [
        *((1, np.array([[x, -0.45], [x, y]]), 0.085) for x, y in _LEGS),
        (0, _box(-0.34, -1, 0.2, -0.5), None),
        *((1, np.array([[x, -0.92], [x, -0.58]]), 0.05) for x in (-0.21, -0.07, 0.07)),
        (2, _SEAT, None),
    ]),
    'book': _Thing('book', (0.36, 0.54), 0.5, [
        (2, _box(-0.34, -0.97, 0.42, 0.03), None), (0, _box(-0.36, -1, 0.36, 0), None),
        (2, _box(-0.36, -1, -0.26, 0), None), (1, _box(-0.18, -0.88, 0.29, -0.7), None),
        *((1, np.array([[-0.16, y], [x, y]]), 0.045) for x, y in
          [(0.2, -0.55), (0.1, -0.42), (0.25, -0.29), (0.15, -0.16)]),
    ]),
    'ball': _Thing('disc', (0.27, 0.46), np.pi, [
        (0, ellipse((0, 0), (0.5, 0.5)), None),
        *((1, np.concatenate([[[0.1, 0.05]], ellipse((0, 0), (0.5, 0.5), t, 48)[:6]]), None)
          for t in np.arange(4) * np.pi / 2),
    ]),
    'clock': _Thing('disc', (0.27, 0.46), np.pi, [
        (2, ellipse((0, 0), (0.5, 0.5)), None), (0, ellipse((0, 0), (0.42, 0.42)), None),
        *((1, mark, 0.045) for mark in _rays(12, 0.33, 0.38)),
        *((1, hand, 0.06) for hand in _rays(6, -0.05, 0.28)[1:3]),
    ]),
}  # fmt: skip


def make_thing(rng: Rng, name: str, foot: ArrayLike, short: float) -> list[Shape]:
    """Draw a thing with its lowest point at `foot` (x, y); `short` scales its height, in pixels."""
    thing = _THINGS[name]
    size = rng.uniform(*thing.heights) * short
    color = random_color(rng, (0.4, 0.95), (0.4, 0.95), thing.palette)
    colors = (color, contrasting(rng, color), contrasting(rng, color, 2))
    disc = thing.palette == 'disc'
    origin = np.array(foot) - [0, size / 2 if disc else 0]
    stretch = (1 if disc else rng.uniform(0.85, 1.2)) * rng.choice([-1, 1])
    angle = rng.uniform(-thing.tilt, thing.tilt)
    return [
        Shape(place(points * [stretch, 1], origin, size, angle), colors[i], width and width * size)
        for i, points, width in thing.parts
    ]
