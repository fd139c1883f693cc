"""Seeded textures of the mini data set.

Colour narrows down, and never decides: sky and water share one palette, wall and floor and clothes
have any hue, bottle and vase share a typical hue as ball and clock do, and every class leaves its
typical hue in one draw of five. Within a pair the pattern (bricks, blades, ripples, clouds), its
perspective, the outline and the place decide.

All functions take a numpy Generator and return (height, width, 3) uint8 RGB. `unit` is the
picture's scale: its short side in pixels divided by 160, so that a pattern keeps its size relative
to the picture.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

from clustr_mm.datasets.mini.drawing import Color, Texture

Rng = np.random.Generator


def random_color(
    rng: Rng,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.1, 0.9),
    value: tuple[float, float] = (0.3, 0.95),
) -> Color:
    """A colour, its hue drawn from the whole circle unless told otherwise."""
    h, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    r, g, b = colorsys.hsv_to_rgb(float(h), float(s), float(v))
    return round(r * 255), round(g * 255), round(b * 255)


# Typical hues. Members of a pair share one, so that colour cannot tell them apart.
HUES: dict[str, tuple[float, float]] = {
    'air': (0.5, 0.64),  # sky, water
    'grass': (0.2, 0.38),
    'vessel': (0.7, 0.82),  # bottle, vase
    'disc': (0.92, 1.0),  # ball, clock
    'chair': (0.06, 0.11),
    'book': (0.42, 0.48),
}
_TYPICAL = 0.8  # how often a class has its typical hue


def typical_color(
    rng: Rng,
    palette: str,
    saturation: tuple[float, float] = (0.4, 0.95),
    value: tuple[float, float] = (0.4, 0.95),
) -> Color:
    """A colour with the palette's hue, or in one draw of five with any hue."""
    hue = HUES[palette] if rng.random() < _TYPICAL else (0.0, 1.0)
    return random_color(rng, hue, saturation, value)


def luma(color: Color) -> float:
    """Brightness of a colour, 0 to 255."""
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def contrasting(rng: Rng, color: Color, least: float = 60.0) -> Color:
    """A random colour whose brightness differs from `color`'s by at least `least` of 255."""
    for _ in range(20):
        other = random_color(rng, saturation=(0.0, 0.4), value=(0.1, 1.0))
        if abs(luma(other) - luma(color)) >= least:
            return other
    return (20, 20, 25) if luma(color) > 127 else (240, 238, 230)


def noise(rng: Rng, height: int, width: int, cell_y: float, cell_x: float) -> np.ndarray:
    """Smooth noise with features of about (cell_y, cell_x) pixels: (height, width), -1 to 1."""
    rows, cols = max(2, round(height / cell_y) + 2), max(2, round(width / cell_x) + 2)
    grid = rng.random((rows, cols), dtype=np.float32) * 2 - 1
    # Linear, since cubic overshoots; the smoothing below takes the creases away.
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)


def _tint(value: np.ndarray, color: Color) -> np.ndarray:
    """Colour a brightness map: `value` (h, w) float32, 1 is the plain colour."""
    rgb = np.array(color, np.float32)
    return np.clip(value[..., None] * rgb, 0, 255).astype(np.uint8)


def _mix(weight: np.ndarray, low: Color, high: Color) -> np.ndarray:
    """From colour `low` (weight 0) to `high` (weight 1): (h, w) float32 to (h, w, 3) uint8."""
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return np.clip(a + weight[..., None] * (b - a), 0, 255).astype(np.uint8)


def _grain(rng: Rng, height: int, width: int) -> np.ndarray:
    """White noise, one value a pixel: (height, width) float32, -1 to 1."""
    return rng.integers(0, 256, (height, width), dtype=np.uint8).astype(np.float32) / 127.5 - 1


# ---- stuff --------------------------------------------------------------------------------------


def _air_color(rng: Rng) -> Color:
    # Sky and water: the same palette, blue or grey mostly, else anything (sunset).
    return typical_color(rng, 'air', saturation=(0.05, 0.55), value=(0.45, 0.95))


def sky(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """A vertical gradient with soft clouds."""
    zenith, horizon = _air_color(rng), _air_color(rng)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    base = _mix(np.broadcast_to(ramp, (height, width)), zenith, horizon)
    clouds = noise(rng, height, width, 16 * unit, 45 * unit)
    clouds += 0.5 * noise(rng, height, width, 8 * unit, 18 * unit)
    cover = np.clip((clouds - rng.uniform(-0.1, 0.6)) * 1.4, 0, 0.8)
    veil = 255 if rng.random() < 0.7 else 70
    alpha = cv2.blur(cover, (2 * round(2 * unit) + 1,) * 2)[..., None]
    return (base * (1 - alpha) + veil * alpha).astype(np.uint8)


def water(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Wavy horizontal ripples that get finer towards the horizon (the upper end)."""
    y = np.arange(height, dtype=np.float32)[:, None] / (8 * unit)
    wobble = noise(rng, height, width, 7 * unit, 22 * unit)
    wobble += 0.6 * noise(rng, height, width, 3 * unit, 10 * unit)
    phase = rng.uniform(9, 14) * np.log1p(y) + 1.9 * wobble + rng.uniform(0, 6.28)
    ripples = np.sin(phase.astype(np.float32))
    glint = np.clip(ripples - 0.55, 0, 1) * rng.uniform(0.4, 1.2)
    value = 0.92 + rng.uniform(0.10, 0.20) * ripples + glint
    return _tint(value.astype(np.float32), _air_color(rng))


def grass(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Dense upright blades, in patches."""
    length = 2 * max(1, round(2.5 * unit)) + 1
    blades = cv2.blur(_grain(rng, height, width), (max(1, round(unit)), length))
    patches = noise(rng, height, width, 18 * unit, 30 * unit)
    depth = np.linspace(0.55, 1.1, height, dtype=np.float32)[:, None]  # finer and flatter far away
    value = 0.85 + rng.uniform(0.55, 0.85) * blades * depth + 0.10 * patches
    return _tint(value, typical_color(rng, 'grass', (0.2, 0.8), (0.4, 0.85)))


def masonry(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Rows of bricks or stones with mortar between, seen square on."""
    brick_h = rng.uniform(7, 13) * unit
    brick_w = brick_h * rng.uniform(1.4, 2.6)
    joint = max(1.0, rng.uniform(0.9, 1.5) * unit)
    brick = random_color(rng, saturation=(0.0, 0.4))
    mortar = contrasting(rng, brick, 45)
    y = np.arange(height, dtype=np.float32) + np.float32(rng.uniform(0, brick_h))
    row = np.floor(y / brick_h).astype(np.int64)  # (h,)
    x = np.arange(width, dtype=np.float32)[None] + (row % 2 * (brick_w / 2))[:, None]  # (h, w)
    col = np.floor(x / brick_w).astype(np.int64)
    shades = rng.uniform(0.78, 1.15, (row.max() + 1, col.max() + 1)).astype(np.float32)
    value = shades[row[:, None], col] + 0.07 * _grain(rng, height, width)
    out = _tint(value, brick)
    seam = (y % brick_h < joint)[:, None] | (x % brick_w < joint)
    out[seam] = mortar
    return out


def panels(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Upright stripes: wall paper or boards."""
    period = rng.uniform(9, 18) * unit
    first = random_color(rng, saturation=(0.0, 0.4))
    second = contrasting(rng, first, 30)
    x = np.arange(width, dtype=np.float32) + np.float32(rng.uniform(0, period))
    stripe = (x % period < period * rng.uniform(0.3, 0.6)).astype(np.float32)
    weight = np.broadcast_to(stripe, (height, width)) + 0.08 * _grain(rng, height, width)
    return _mix(weight, first, second)


def wall(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Bricks mostly, else upright stripes."""
    return (masonry if rng.random() < 0.7 else panels)(rng, height, width, unit)


def floor(rng: Rng, height: int, width: int, unit: float) -> np.ndarray:
    """Tiles or boards in perspective; at times bricks as on a wall: then only the place tells."""
    if rng.random() < 0.1:
        return masonry(rng, height, width, unit)
    first = random_color(rng, saturation=(0.0, 0.4))
    second = contrasting(rng, first, 35)
    # The vanishing line lies above the upper end, so that no row has endless detail.
    above = rng.uniform(0.35, 0.8) * height
    depth = 1.0 / (np.arange(height, dtype=np.float32) + np.float32(above))  # (h,)
    center = rng.uniform(0.2, 0.8) * width
    u = (np.arange(width, dtype=np.float32) - np.float32(center))[None] * depth[:, None]
    v = np.float32(height) * depth
    u, v = u * np.float32(rng.uniform(5, 8)), v * np.float32(rng.uniform(5, 8))
    if rng.random() < 0.6:
        weight = ((np.floor(u) + np.floor(v)[:, None]) % 2).astype(np.float32)
    else:
        boards = rng.random(64, dtype=np.float32)
        weight = boards[np.floor(u).astype(np.int64) % 64] * np.float32(0.8)
        weight = np.where(u % 1 < 0.08, np.float32(1.3), weight)
    return _mix(weight + 0.06 * _grain(rng, height, width), first, second)


STUFF_TEXTURES: dict[str, Callable[[Rng, int, int, float], np.ndarray]] = {
    'sky': sky,
    'water': water,
    'grass': grass,
    'wall': wall,
    'floor': floor,
}


# ---- things -------------------------------------------------------------------------------------


def fill(rng: Rng, first: Color, unit: float, pattern: str) -> Color | Texture:
    """What a garment, chair, bottle or vase is filled with.

    Args:
        rng: the scene's generator.
        first: its main colour.
        unit: the picture's scale.
        pattern: 'plain', 'stripes' (level), 'slats' (upright), 'zigzag' or 'glass' (lit from the
            side, with a highlight).
    """
    second = contrasting(rng, first, 60)
    period, share = rng.uniform(5, 9) * unit, rng.uniform(0.35, 0.6)

    def stripes(height: int, width: int) -> np.ndarray:
        weight = (np.arange(height)[:, None] % period < period * share).astype(np.float32)
        return _mix(np.broadcast_to(weight, (height, width)), first, second)

    def slats(height: int, width: int) -> np.ndarray:
        weight = (np.arange(width)[None] % period < period * share).astype(np.float32)
        return _mix(np.broadcast_to(weight, (height, width)), first, second)

    def zigzag(height: int, width: int) -> np.ndarray:
        y, x = np.arange(height)[:, None], np.arange(width)[None]
        tooth = np.abs(x % period - period / 2)
        weight = ((y + 1.6 * tooth) % (1.6 * period) < 1.6 * period * share).astype(np.float32)
        return _mix(weight, first, second)

    def glass(height: int, width: int) -> np.ndarray:
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        value = np.float32(1.05) - np.float32(0.75) * x * x
        shine = np.exp(-(((x + np.float32(0.35)) / np.float32(0.13)) ** 2))
        lit = np.broadcast_to(value, (height, width))
        return np.maximum(_tint(lit, first), (shine * 235).astype(np.uint8)[..., None])

    made = {'stripes': stripes, 'slats': slats, 'zigzag': zigzag, 'glass': glass}
    return first if pattern == 'plain' else made[pattern]
