"""The things of the mini data set other than persons, as display lists.

Two pairs differ in one respect only. A plain bottle and a plain vase stand alike, have the same
sizes and any colour: the outline tells them apart. Ball and clock are discs of the same sizes and
colours: what is drawn on the disc tells them apart.

Every maker takes (rng, origin, size, unit): `origin` is in pixels the middle of the foot of a
standing thing, or the centre of a disc; `size` its height, or diameter, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from clustr_mm.datasets.mini.drawing import Shape, ellipse, place
from clustr_mm.datasets.mini.textures import Rng, contrasting, fill, random_color, typical_color

Origin = tuple[float, float]

_PLAIN = 0.3  # share of bottles and vases without a pattern


def _mirror(profile: list[tuple[float, float]]) -> np.ndarray:
    """A symmetric outline from its right half, (half width, y) from the top down."""
    right = np.array(profile)
    return np.concatenate([right, (right * [-1, 1])[::-1]])


def _smooth(profile: list[tuple[float, float]], steps: int = 5) -> list[tuple[float, float]]:
    """A rounder half outline: cosine steps between its corners."""
    out = []
    for (w0, y0), (w1, y1) in zip(profile, profile[1:], strict=False):
        for i in range(steps):
            t = i / steps
            s = (1 - np.cos(np.pi * t)) / 2
            out.append((w0 + (w1 - w0) * s, y0 + (y1 - y0) * t))
    return [*out, profile[-1]]


def bottle(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """Straight body, shoulders, long neck and a cap."""
    body, neck = rng.uniform(0.15, 0.2), rng.uniform(0.05, 0.07)
    shoulder = rng.uniform(-0.66, -0.55)
    # Drawn square at the corners: a bottle never bulges.
    outline = _mirror(
        [(neck, -1.0), (neck, shoulder - 0.14), (body, shoulder), (body, -0.02), (body - 0.02, 0.0)]
    )
    body_fill = fill(
        rng, typical_color(rng, 'vessel'), unit, 'plain' if rng.random() < _PLAIN else 'glass'
    )
    cap = np.array([[-1, -1.0], [1, -1.0], [1, -0.9], [-1, -0.9]]) * [neck * 1.25, 1.0]
    tilt = rng.uniform(-0.15, 0.15)
    return [
        Shape(place(outline, origin, size, tilt), body_fill),
        Shape(place(cap, origin, size, tilt), random_color(rng)),
    ]


def vase(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """Round belly, waist, and a lip that opens out."""
    belly, waist = rng.uniform(0.25, 0.34), rng.uniform(0.07, 0.12)
    lip, foot = rng.uniform(0.17, 0.25), rng.uniform(0.11, 0.16)
    outline = _mirror(
        _smooth([(lip, -1.0), (waist, rng.uniform(-0.82, -0.74)), (belly, rng.uniform(-0.5, -0.4)),
                 (foot, -0.06), (foot + 0.02, 0.0)])
    )  # fmt: skip
    body_fill = fill(
        rng, typical_color(rng, 'vessel'), unit, 'plain' if rng.random() < _PLAIN else 'zigzag'
    )
    rim = ellipse((0, -1.0), (lip, 0.035), points=16)
    tilt = rng.uniform(-0.15, 0.15)
    return [
        Shape(place(outline, origin, size, tilt), body_fill),
        Shape(place(rim, origin, size, tilt), random_color(rng)),
    ]


def chair(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """Back, seat and four legs, seen from a little to one side."""
    side = 1 if rng.random() < 0.5 else -1
    half, skew, drop = rng.uniform(0.24, 0.3), rng.uniform(0.12, 0.2), rng.uniform(0.08, 0.12)
    seat_y, leg = rng.uniform(-0.52, -0.45), 0.085
    back = np.array([[-half, -1.0], [half, -1.0], [half, seat_y], [-half, seat_y]])
    seat = np.array([[-half, seat_y], [half, seat_y], [half + skew, seat_y + drop],
                     [-half + skew, seat_y + drop]])  # fmt: skip
    body_fill = fill(
        rng, typical_color(rng, 'chair'), unit, 'plain' if rng.random() < 0.5 else 'slats'
    )
    frame = typical_color(rng, 'chair', value=(0.3, 0.8))
    flip = np.array([side, 1.0])

    def at(points: ArrayLike) -> np.ndarray:
        return place(np.asarray(points) * flip - [side * skew / 2, 0], origin, size, 0.0)

    legs = [(-half, seat_y, -drop), (half, seat_y, -drop),
            (-half + skew, seat_y + drop, 0.0), (half + skew, seat_y + drop, 0.0)]  # fmt: skip
    shapes = [
        Shape(at([[x + (leg / 2 if x < 0 else -leg / 2), top], [x * 1.02, foot - leg / 2]]),
              frame, leg * size)
        for x, top, foot in legs
    ]  # fmt: skip
    shapes.append(Shape(at(back), body_fill))
    bars = rng.random() < 0.5
    if bars:
        hole = random_color(rng, value=(0.1, 0.4))
        for x in (-0.5, 0.0, 0.5):
            shapes.append(Shape(at([[x * half, -0.92], [x * half, seat_y - 0.08]]), hole,
                                0.05 * size))  # fmt: skip
    shapes.append(Shape(at(seat), contrasting(rng, frame, 40)))
    return shapes


def book(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """A cover with a spine, a title block and lines of text, at an angle."""
    ratio = rng.uniform(0.66, 0.8)
    tilt = rng.uniform(-0.5, 0.5)
    cover = typical_color(rng, 'book')
    ink, spine, pages = contrasting(rng, cover, 70), contrasting(rng, cover, 35), (238, 234, 220)
    skew = rng.uniform(-0.12, 0.12)

    def at(points: ArrayLike) -> np.ndarray:
        p = (np.asarray(points, float) - [0.5, 1.0]) * [ratio, 1.0]
        p[:, 0] += skew * p[:, 1]
        return place(p, origin, size, tilt)

    def block(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        return at([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])

    shapes = [
        Shape(block(0.03, 0.03, 1.06, 1.03), pages),
        Shape(block(0, 0, 1, 1), cover),
        Shape(block(0, 0, 0.14, 1), spine),
        Shape(block(0.25, 0.12, 0.9, 0.3), ink),
    ]
    for y in np.linspace(0.45, 0.85, int(rng.integers(3, 6))):
        shapes.append(Shape(at([[0.27, y], [rng.uniform(0.6, 0.9), y]]), ink, 0.045 * size))
    return shapes


def ball(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """A disc with a ball's pattern: sectors, bands or spots, bent as on a sphere."""
    radius = size / 2
    first = typical_color(rng, 'disc')
    second = contrasting(rng, first, 70)
    shapes = [Shape(ellipse(origin, (radius, radius), points=32), first)]
    turn = rng.uniform(0, 6.28)
    kind = rng.integers(0, 3)
    if kind == 0:  # beach ball: sectors that meet off centre
        hub = np.array([[rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35)]])
        for i in range(4):
            t = turn + i * np.pi / 2 + np.linspace(0, np.pi / 4, 7)
            rim = np.stack([np.cos(t), np.sin(t)], 1)
            shapes.append(Shape(place(np.concatenate([hub, rim]), origin, radius, 0), second))
    elif kind == 1:  # two curved bands
        for low, high in ((-0.62, -0.22), (0.22, 0.62)):
            x = np.linspace(-1, 1, 11)
            edges = [
                np.stack([np.sqrt(1 - y * y) * x, y + 0.22 * (1 - x * x)], 1) for y in (low, high)
            ]
            band = np.concatenate([edges[0], edges[1][::-1]])
            band /= np.maximum(1, np.linalg.norm(band, axis=1, keepdims=True))
            shapes.append(Shape(place(band, origin, radius, turn), second))
    else:  # football: spots, flattened towards the rim
        for distance, count in ((0.0, 1), (0.72, 5)):
            for i in range(count):
                around = float(turn + i * 2 * np.pi / count)
                spot = ellipse((distance, 0), (0.29 * (1 - 0.55 * distance), 0.29), points=5)
                shapes.append(Shape(place(spot, origin, radius, around), second))
    return shapes


def clock(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """A disc with a rim, twelve marks and two hands."""
    radius = size / 2
    face = typical_color(rng, 'disc')
    ink, rim = contrasting(rng, face, 80), contrasting(rng, face, 40)
    shapes = [
        Shape(ellipse(origin, (radius, radius), points=32), rim),
        Shape(ellipse(origin, (0.84 * radius, 0.84 * radius), points=32), face),
    ]
    for hour in range(12):
        inner = 0.6 if hour % 3 == 0 else 0.68
        mark = np.array([[inner, 0.0], [0.77, 0.0]])
        wide = 0.12 if hour % 3 == 0 else 0.07
        shapes.append(Shape(place(mark, origin, radius, hour * np.pi / 6), ink, wide * radius))
    minute = rng.uniform(0, 2 * np.pi)
    short = rng.uniform(0, 2 * np.pi)
    for angle, length, wide in ((short, 0.42, 0.13), (minute, 0.62, 0.09)):
        hand = np.array([[-0.1, 0.0], [length, 0.0]])
        shapes.append(Shape(place(hand, origin, radius, angle), ink, wide * radius))
    return shapes


def clutter(rng: Rng, origin: Origin, size: float, unit: float) -> list[Shape]:
    """Something of no class (label 0, "other"): a jagged star."""
    n = int(rng.integers(5, 9))
    t = rng.uniform(0, 6.28) + np.arange(2 * n) * np.pi / n
    r = np.where(np.arange(2 * n) % 2 == 0, 1.0, rng.uniform(0.35, 0.6))
    star = np.stack([r * np.cos(t), r * np.sin(t)], 1)
    return [Shape(place(star, origin, size / 2, 0.0), random_color(rng))]


Maker = Callable[[Rng, Origin, float, float], list[Shape]]
MAKERS: dict[str, Maker] = {
    'bottle': bottle,
    'vase': vase,
    'chair': chair,
    'book': book,
    'ball': ball,
    'clock': clock,
    'other': clutter,
}
