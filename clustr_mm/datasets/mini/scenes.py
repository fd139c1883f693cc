"""Seeded scenes: things over stuff, in which shape, texture and place matter.

One `Scene` holds everything that any layout needs. Scene `index` of (`seed`, `split`) depends on
nothing else: no order, no process, no other scene.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from clustr_mm.datasets.mini.drawing import TEXTURES, Rng, draw
from clustr_mm.datasets.mini.figures import KEYPOINT_PARTS, make_figure
from clustr_mm.datasets.mini.spec import LABELS, THINGS
from clustr_mm.datasets.mini.things import make_thing

SPLITS = ('train', 'val')
# Share of a thing's pixels that nearer things leave in sight: 133 keypoints want most of a person.
_IN_SIGHT, _PERSON_IN_SIGHT = 0.35, 0.65


@dataclass(frozen=True, eq=False)
class Instance:
    """One thing of a scene; a person's flag is 2 seen, 1 hidden, 0 outside (then x = y = 0)."""

    name: str  # one of THINGS
    mask: np.ndarray  # (H, W) bool, the visible pixels, never empty
    box: tuple[int, int, int, int]  # x, y, width, height in pixels: the smallest around the mask
    keypoints: np.ndarray | None = None  # (133, 3) float64 of a person: x, y in pixels, flag


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and all that is known of it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    semantic: np.ndarray  # (H, W) uint8, index into CLASSES plus 1
    instances: tuple[Instance, ...]  # farthest first


def make_scene(
    seed: int, split: str, index: int, size: tuple[int, int], subject: str | None = None
) -> Scene:
    """Draw one scene: the same bits for the same arguments.

    Args:
        seed: any int from 0.
        index: number of the scene in its split, from 0.
        split: 'train' or 'val'; their scenes have nothing in common.
        size: height and width in pixels.
        subject: class that shall fill the picture, but for one small thing on a subject of stuff.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index, subject is not None])
    canvas = _Canvas(rng, size, subject)
    others = rng.permutation([name for name in THINGS if name != 'person']).tolist()
    if subject is None:
        persons = ['person'] * int(rng.choice(3, p=[0.25, 0.55, 0.2]))
        names, nearest, zoom = persons + others[: rng.integers(2, 5)], 0.12, 1.0
    elif subject in THINGS:
        names, nearest, zoom = [subject], 0.85, 1.4
    else:
        names, nearest, zoom = others[:1], 0.12, 0.6
    # How near things are, from 0 at the horizon to 1 at the lower edge; far ones first.
    nearness = np.sort(rng.uniform(nearest, 1, len(names)))
    for name, near in zip(rng.permutation(names).tolist(), nearness.tolist(), strict=True):
        any(canvas.put(name, near, zoom) for _ in range(4))
    return Scene(canvas.developed(), canvas.semantic, canvas.instances())


class _Canvas:
    """A scene in the making: it begins with the stuff."""

    def __init__(self, rng: Rng, size: tuple[int, int], subject: str | None) -> None:
        self.rng, self.size, (height, width) = rng, size, size
        self.image = np.zeros((height, width, 3), np.uint8)
        self.semantic = np.zeros(size, np.uint8)
        self.owner = np.full(size, -1, np.int16)  # index of the thing seen, -1 for none
        self.parts = np.zeros(size, np.uint8)  # the part of it
        self.placed: list[tuple[str, int, np.ndarray | None]] = []  # name, pixels, keypoints

        ground = rng.permutation(['floor', 'grass', 'water']).tolist()
        share, above = rng.uniform(0.32, 0.58), rng.random()
        if subject == 'wall':
            share, above = rng.uniform(0.8, 1), 0.0
        elif subject in ground:
            share, ground = rng.uniform(0, 0.2), [subject, subject]
        self.horizon = round(height * share)
        y, x = np.mgrid[:height, :width]
        self._fill('sky', y < self.horizon)
        self._fill(ground[0], y >= self.horizon)
        if above < 0.65:  # a wall; mostly it has a free end, and at times a top
            end = width * (rng.uniform(0.3, 0.7) if above > 0.25 else 1.0)
            top = self.horizon * (rng.uniform(0.1, 0.55) if above > 0.45 else 0.0)
            self._fill('wall', (y < self.horizon) & (y >= top) & (x < end))
        if rng.random() < 0.6:  # a shore
            slope, bend = rng.uniform(-0.3, 0.3), rng.uniform(0, 0.12)
            wave = slope * (x / width - 0.5) + bend * np.sin(6.28 * x / width)
            depth = np.maximum(rng.uniform(0.25, 0.75) + wave, 0)
            self._fill(ground[1], y >= self.horizon + (height - self.horizon) * depth)

    def _fill(self, name: str, region: np.ndarray) -> None:
        """Give an (H, W) bool region one stuff class: its label and its texture."""
        rows = np.flatnonzero(region.any(axis=1))
        # A generator of its own: how much a texture draws depends on the picture's size.
        rng = np.random.default_rng(self.rng.integers(2**32))
        if rows.size:
            band = slice(rows[0], rows[-1] + 1)
            height, width = region[band].shape
            texture = TEXTURES[name](rng, height, width, min(self.size) / 160)
            self.image[band][region[band]] = texture[region[band]]
            self.semantic[region] = LABELS[name]

    def put(self, name: str, near: float, zoom: float) -> bool:
        """Try to put one thing at a random place; False if it would not fit there."""
        rng, (height, width) = self.rng, self.size
        short = min(self.size) * zoom * (0.7 + 0.3 * near)  # what is farther off is smaller
        foot = self.horizon + near * (1.02 * height - self.horizon)
        # A subject, and a person, stands nearer the middle, or the frame would cut off its hands.
        margin = 0.4 if zoom > 1 else 0.2 if name == 'person' else 0.06
        x = rng.uniform(margin, 1 - margin) * width
        points = None
        if name == 'person':
            tall = rng.uniform(0.62, 1.05) * short
            # A head outside the picture leaves little of a person: step forward instead.
            shapes, points = make_figure(rng, (x, max(foot, rng.uniform(0.94, 1.06) * tall)), tall)
        else:
            if name in ('ball', 'clock') and rng.random() < 0.5:
                foot = rng.uniform(min(0.4 * short, foot), foot)  # in the air, or on the wall
            shapes = make_thing(rng, name, (x, foot), short)
        parts = np.zeros(self.size, np.uint8)
        for shape in shapes:
            draw(parts, shape, shape.part, cv2.LINE_8)  # smooth edges would mix parts
        mask = parts > 0
        left = np.bincount(self.owner[~mask & (self.owner >= 0)], minlength=len(self.placed))
        least = [n * (_PERSON_IN_SIGHT if p is not None else _IN_SIGHT) for _, n, p in self.placed]
        if mask.sum() < 0.0025 * min(self.size) ** 2 or (left < least).any():
            return False
        for shape in shapes:
            draw(self.image, shape, shape.color)
        self.semantic[mask] = LABELS[name]
        self.owner[mask] = len(self.placed)
        self.parts[mask] = parts[mask]
        self.placed.append((name, int(mask.sum()), points))
        return True

    def instances(self) -> tuple[Instance, ...]:
        """Masks, boxes and keypoint flags as nearer things have left them."""
        out = []
        for i, (name, _, points) in enumerate(self.placed):
            mask = self.owner == i
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            keypoints = None if points is None else self._flagged(points, mask)
            out.append(Instance(name, mask, (x, y, w, h), keypoints))
        return tuple(out)

    def _flagged(self, points: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Add visibility flags: (133, 2) to (133, 3)."""
        x, y = np.round(points).astype(int).T
        inside = (x >= 0) & (x < self.size[1]) & (y >= 0) & (y < self.size[0])
        # A point on an outline (jaw, finger tip) is seen if its part is within a pixel of it.
        near = np.lib.stride_tricks.sliding_window_view(np.pad(self.parts * mask, 1), (3, 3))
        around = near[np.where(inside, y, 0), np.where(inside, x, 0)]  # (133, 3, 3)
        seen = (around == KEYPOINT_PARTS[:, None, None]).any(axis=(1, 2))
        return np.column_stack([points, 1 + seen]) * inside[:, None]

    def developed(self) -> np.ndarray:
        """Lighting gradient and sensor noise: the finished (H, W, 3) uint8 picture."""
        (height, width), rng = self.size, self.rng
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
        light = rng.uniform(0.8, 1.1) * (1 + rng.uniform(-0.2, 0.2) * x + rng.uniform(-0.1, 0) * y)
        grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(1.5, 5.0)
        return np.clip(self.image * light[..., None] + grain, 0, 255).astype(np.uint8)
