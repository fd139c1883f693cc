"""Seeded scenes: things over stuff, in which shape, texture and place matter.

One `Scene` holds everything that any layout needs, so the ADE20K, COCO, COCO-WholeBody and
ImageNet forms of the mini data set are projections of the same scenes. Scene `index` of
(`seed`, `split`) depends on nothing else: no order, no process, no other scene.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from clustr_mm.datasets.mini.classes import LABELS, THINGS
from clustr_mm.datasets.mini.drawing import bounds, paint, rasterize
from clustr_mm.datasets.mini.figures import KEYPOINT_PARTS, Figure, make_figure
from clustr_mm.datasets.mini.textures import STUFF_TEXTURES, Rng
from clustr_mm.datasets.mini.things import MAKERS

SPLITS = ('train', 'val')
MIN_SIDE = 32  # pixels; below it nothing can be told from anything
OTHER = 0  # label of what belongs to no class

# Heights of things in units of the picture's short side, for one that stands at its foot.
_SIZES = {
    'bottle': (0.42, 0.68),
    'vase': (0.42, 0.68),
    'chair': (0.46, 0.72),
    'book': (0.36, 0.54),
    'ball': (0.27, 0.46),
    'clock': (0.27, 0.46),
    'other': (0.1, 0.2),
}
_PERSON_SIZES = (0.62, 1.05)  # the last are cut off by the frame
# Share of a thing's pixels that nearer things must leave in sight. A person's share is larger: 133
# keypoints cannot be guessed from a third of a person.
_LEAST_VISIBLE = 0.35
_LEAST_VISIBLE_PERSON = 0.65


@dataclass(frozen=True, eq=False)
class Instance:
    """One thing of a scene.

    Args:
        name: class name, one of `THINGS`.
        mask: (H, W) bool, the visible pixels, never empty.
        box: x, y, width and height in pixels of the smallest box around `mask`.
        keypoints: (133, 3) float64 for a person, else None: x and y in pixels, and the flag 2
            visible, 1 in the picture but hidden, 0 outside the picture (then x = y = 0).
    """

    name: str
    mask: np.ndarray
    box: tuple[int, int, int, int]
    keypoints: np.ndarray | None = None

    @property
    def area(self) -> int:
        """Visible pixels."""
        return int(self.mask.sum())


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and all that is known of it.

    Args:
        image: (H, W, 3) uint8 RGB.
        semantic: (H, W) uint8, index into `CLASSES` plus 1; 0 is "other".
        instances: the things, farthest first.
    """

    image: np.ndarray
    semantic: np.ndarray
    instances: tuple[Instance, ...]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A thing that has been painted."""

    name: str
    area: int  # pixels before anything hid it
    figure: Figure | None  # of a person
    parts: np.ndarray | None  # (H, W) uint8, part of the figure or 0


@dataclass
class _Canvas:
    """A scene in the making."""

    image: np.ndarray  # (H, W, 3) uint8
    semantic: np.ndarray  # (H, W) uint8
    horizon: int  # first row of the ground
    unit: float
    light: tuple[float, float]  # direction the light falls in: x, y; y > 0
    owner: np.ndarray = field(init=False)  # (H, W) int16, index of the instance seen, -1 none
    placed: list[_Placed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = np.full(self.semantic.shape, -1, np.int16)


def make_scene(seed: int, split: str, index: int, size: tuple[int, int] = (160, 160)) -> Scene:
    """Draw one scene.

    Args:
        seed: any int from 0.
        split: 'train' or 'val'; their scenes have nothing in common.
        index: number of the scene, from 0.
        size: height and width in pixels, at least 32 each. At the same aspect ratio a scene has
            the same layout at every size, but for what rounding decides otherwise.

    Returns:
        The scene, the same bits for the same arguments.

    Raises:
        ValueError: for an unknown split, a negative seed or index, or too small a size.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}, must be one of {SPLITS}')
    if seed < 0 or index < 0:
        raise ValueError(f'seed and index must be 0 or more, got {seed} and {index}')
    if min(size) < MIN_SIDE:
        raise ValueError(f'size is {tuple(size)} pixels, both sides must be {MIN_SIDE} or more')
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _backdrop(rng, size)
    _populate(rng, canvas)
    instances = _instances(canvas)
    image = _develop(rng, canvas)
    return Scene(image, canvas.semantic, instances)


# ---- stuff --------------------------------------------------------------------------------------


def _fill(rng: Rng, canvas: _Canvas, name: str, region: np.ndarray) -> None:
    """Give a (H, W) bool region one stuff class: its label and its texture."""
    rows = np.flatnonzero(region.any(axis=1))
    if rows.size == 0:
        return
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    # A texture draws as many numbers as it has pixels. With a stream of its own it leaves the
    # scene's stream alone, and the scene keeps its layout at every size.
    own = np.random.default_rng(int(rng.integers(0, 2**62)))
    patch = STUFF_TEXTURES[name](own, y1 - y0, region.shape[1], canvas.unit)
    part = region[y0:y1]
    canvas.image[y0:y1][part] = patch[part]
    canvas.semantic[y0:y1][part] = LABELS[name]


def _backdrop(rng: Rng, size: tuple[int, int]) -> _Canvas:
    """Sky or wall or both above the horizon; floor, grass or water or two of them below."""
    height, width = size
    unit = min(size) / 160
    horizon = round(height * rng.uniform(0.32, 0.58))
    side = 1.0 if rng.random() < 0.5 else -1.0
    canvas = _Canvas(
        np.zeros((height, width, 3), np.uint8),
        np.zeros((height, width), np.uint8),
        horizon,
        unit,
        (float(side * rng.uniform(0.3, 1.0)), float(rng.uniform(0.4, 1.0))),
    )
    y, x = np.arange(height)[:, None], np.arange(width)[None]

    above = np.broadcast_to(y < horizon, size)
    kind = rng.random()
    if kind < 0.35:
        _fill(rng, canvas, 'sky', above)
    elif kind < 0.6:
        _fill(rng, canvas, 'wall', above)
    else:  # a wall with a free end and, at times, a top
        edge = width * rng.uniform(0.3, 0.7)
        top = horizon * (rng.uniform(0.1, 0.55) if rng.random() < 0.5 else 0.0)
        beside = (x < edge) if rng.random() < 0.5 else (x >= edge)
        _fill(rng, canvas, 'sky', above)
        _fill(rng, canvas, 'wall', above & beside & (y >= top))

    below = np.broadcast_to(y >= horizon, size)
    first, second = rng.permutation(['floor', 'grass', 'water'])[:2].tolist()
    _fill(rng, canvas, first, below)
    if rng.random() < 0.6:
        depth = (height - horizon) * rng.uniform(0.25, 0.75)
        slope, wave = rng.uniform(-0.6, 0.6), rng.uniform(0, 0.12) * height
        along = x / width - 0.5
        phase = rng.uniform(0, 6.28)
        shore = horizon + depth + slope * depth * along + wave * np.sin(6.28 * along + phase)
        _fill(rng, canvas, second, below & (y >= shore))
    return canvas


# ---- things -------------------------------------------------------------------------------------


def _populate(rng: Rng, canvas: _Canvas) -> None:
    """Place persons and things, farthest first; drop what would hide another too much."""
    names = ['person'] * int(rng.choice(4, p=[0.25, 0.55, 0.2, 0.0]))
    others = [n for n in THINGS if n != 'person']
    names += rng.permutation(others)[: int(rng.integers(2, 5))].tolist()
    if rng.random() < 0.25:
        names.append('other')
    height = canvas.image.shape[0]
    near = height * 1.02
    # The ground's depth: a foot between the horizon and the lower edge, far ones first.
    feet = np.sort(rng.uniform(canvas.horizon + 0.12 * (near - canvas.horizon), near, len(names)))
    for name, foot in zip(rng.permutation(names).tolist(), feet.tolist(), strict=True):
        for _ in range(4):
            if _place(rng, canvas, name, foot):
                break


def _place(rng: Rng, canvas: _Canvas, name: str, foot: float) -> bool:
    """Try to put one thing at a random place; False if it would not fit there."""
    height, width = canvas.semantic.shape
    short = min(height, width)
    # 0 at the horizon, 1 at the lower edge: what is farther off is smaller.
    nearness = (foot - canvas.horizon) / (height * 1.02 - canvas.horizon)
    # Persons stand nearer the middle, or the frame would cut off most hands.
    margin = 0.2 if name == 'person' else 0.06
    x = rng.uniform(margin, 1 - margin) * width
    figure = None
    hung = False
    if name == 'person':
        tall = rng.uniform(*_PERSON_SIZES) * short * (0.75 + 0.25 * nearness)
        if rng.random() < 0.12:  # a close-up, cut at the waist or the knees
            tall, foot = 1.5 * short, foot + 0.55 * short
        # A head outside the picture leaves little of a person: step forward instead.
        foot = max(foot, rng.uniform(0.94, 1.06) * tall)
        figure = make_figure(rng, (x, foot), tall, canvas.unit)
        shapes = figure.shapes
    else:
        size = rng.uniform(*_SIZES[name]) * short * (0.65 + 0.35 * nearness)
        if name in ('ball', 'clock', 'other'):
            # Discs lie on the ground, hang on the wall or fly: the place does not tell which.
            hung = rng.random() < 0.5
            y = rng.uniform(0.55 * size, foot) if hung else foot - size / 2
        else:
            y = max(foot, size * 1.02)
        shapes = MAKERS[name](rng, (x, y), size, canvas.unit)

    box = bounds(shapes, (height, width))
    if box is None:
        return False
    mask, parts = rasterize(shapes, box)
    x0, y0, x1, y1 = box
    covered = canvas.owner[y0:y1, x0:x1][mask]
    if covered.size < 60 * canvas.unit**2:
        return False
    hidden = np.bincount(covered[covered >= 0], minlength=len(canvas.placed))
    least = np.array(
        [t.area * (_LEAST_VISIBLE_PERSON if t.figure else _LEAST_VISIBLE) for t in canvas.placed]
    )
    if ((hidden > 0) & (_visible(canvas) - hidden < least)).any():
        return False

    _shadow(canvas, mask, box, hung)
    paint(canvas.image, shapes)
    _shade(canvas, mask, box, round_=name == 'ball')
    canvas.semantic[y0:y1, x0:x1][mask] = LABELS.get(name, OTHER)
    canvas.owner[y0:y1, x0:x1][mask] = len(canvas.placed)
    part_map = None
    if figure is not None:
        part_map = np.zeros((height, width), np.uint8)
        part_map[y0:y1, x0:x1] = np.where(mask, parts, 0)
    canvas.placed.append(_Placed(name, int(mask.sum()), figure, part_map))
    return True


def _visible(canvas: _Canvas) -> np.ndarray:
    """Pixels in sight of each thing placed so far: (n,) int64."""
    owner = canvas.owner
    return np.bincount(owner[owner >= 0].astype(np.int64), minlength=len(canvas.placed))


def _shadow(canvas: _Canvas, mask: np.ndarray, box: tuple[int, int, int, int], hung: bool) -> None:
    """Darken where the thing's shadow falls: lying on the ground, or on the wall behind."""
    x0, y0, x1, y1 = box
    height, width = canvas.semantic.shape
    lx, ly = canvas.light
    if hung:
        shift = 5 * canvas.unit
        matrix = np.array([[1, 0, x0 + shift * lx], [0, 1, y0 + shift * ly]], np.float32)
    else:
        # A point d above the foot throws its shadow 0.7 * d * lx beside it, 0.22 * d * ly before.
        rows = np.flatnonzero(mask.any(axis=1))
        foot = float(rows[-1])
        matrix = np.array(
            [[1, -0.7 * lx, x0 + 0.7 * lx * foot], [0, -0.22 * ly, y0 + foot * (1 + 0.22 * ly)]],
            np.float32,
        )
    flat = cv2.warpAffine(mask.astype(np.uint8) * 110, matrix, (width, height))
    k = 2 * round(1.5 * canvas.unit) + 1
    dark = 255 - cv2.blur(flat, (k, k)).astype(np.uint16)
    rows = np.flatnonzero(flat.any(axis=1))
    if rows.size:
        a, b = max(0, int(rows[0]) - k), int(rows[-1]) + k + 1
        strip = canvas.image[a:b]
        strip[...] = (strip * dark[a:b, :, None] // 255).astype(np.uint8)


def _shade(canvas: _Canvas, mask: np.ndarray, box: tuple[int, int, int, int], round_: bool) -> None:
    """Light one side of a thing more than the other."""
    x0, y0, x1, y1 = box
    patch = canvas.image[y0:y1, x0:x1]
    h, w = mask.shape
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    lx, ly = canvas.light
    value = 1 - np.float32(0.2 * lx) * x - np.float32(0.12 * ly) * y  # (h, w)
    if round_:
        value = value * (np.float32(1.05) - np.float32(0.3) * (x * x + y * y))
    lit = np.clip(patch * value[..., None], 0, 255).astype(np.uint8)
    patch[mask] = lit[mask]


def _instances(canvas: _Canvas) -> tuple[Instance, ...]:
    """Masks, boxes and keypoint flags as nearer things have left them."""
    out = []
    for i, thing in enumerate(canvas.placed):
        mask = canvas.owner == i
        if thing.name == 'other' or not mask.any():
            continue
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        keypoints = None
        if thing.figure is not None and thing.parts is not None:
            keypoints = _flag(thing.figure.keypoints, np.where(mask, thing.parts, 0))
        out.append(Instance(thing.name, mask, (x, y, w, h), keypoints))
    return tuple(out)


def _flag(points: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Add visibility flags: (133, 2) to (133, 3); `parts` is 0 where the person is not seen."""
    height, width = parts.shape
    column, row = np.round(points[:, 0]).astype(int), np.round(points[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # A point on an outline (jaw, finger tip) is seen if its part is within a pixel of it.
    padded = np.pad(parts, 1)
    seen = np.zeros(len(points), bool)
    for dy in range(3):
        for dx in range(3):
            near = padded[np.clip(row, 0, height - 1) + dy, np.clip(column, 0, width - 1) + dx]
            seen |= near == KEYPOINT_PARTS
    flags = np.where(inside, np.where(seen, 2, 1), 0)
    return np.concatenate([np.where(inside[:, None], points, 0.0), flags[:, None]], axis=1)


# ---- the whole picture --------------------------------------------------------------------------


def _develop(rng: Rng, canvas: _Canvas) -> np.ndarray:
    """Lighting gradient, blur and sensor noise: the finished (H, W, 3) uint8 picture."""
    height, width = canvas.semantic.shape
    lx, ly = canvas.light
    strength = np.float32(rng.uniform(0.05, 0.25))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light = 1 - strength * (np.float32(lx) * x + np.float32(ly * 0.6) * y)  # (H, W)
    exposure = np.float32(rng.uniform(0.8, 1.1))
    image = canvas.image
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 0.7) * canvas.unit))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    value = image * (light * exposure)[..., None] + grain * np.float32(rng.uniform(1.5, 5.0))
    return np.clip(value, 0, 255).astype(np.uint8)
