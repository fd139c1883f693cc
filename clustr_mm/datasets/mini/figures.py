"""Persons of the mini data set: articulated figures with all 133 COCO-WholeBody keypoints.

A figure is drawn from its keypoints and not the other way round: pose first, then the 133 points,
then shapes that run through them, so that every annotated point can be seen in the picture (eyes,
brows, nose, mouth and jaw line; five fingers of four joints; toes and heels).

Symbols: a figure's own coordinates have the sole at y = 0, the top of the head at y = -1, x to the
right in the picture. Persons face the viewer, so their left is the picture's right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clustr_mm.datasets.mini.drawing import Color, Shape, Texture, ellipse, place
from clustr_mm.datasets.mini.textures import Rng, contrasting, fill, luma, random_color

# Where each group stands among the 133 (COCO-WholeBody's order).
BODY, FEET, FACE = slice(0, 17), slice(17, 23), slice(23, 91)
LEFT_HAND, RIGHT_HAND = slice(91, 112), slice(112, 133)

BODY_NAMES = (
    'nose,left_eye,right_eye,left_ear,right_ear,left_shoulder,right_shoulder,left_elbow,'
    'right_elbow,left_wrist,right_wrist,left_hip,right_hip,left_knee,right_knee,left_ankle,'
    'right_ankle'
).split(',')

# Parts of a figure, back to front; a keypoint is hidden where another part lies over it.
TRUNK, HEAD, LEFT_ARM, RIGHT_ARM = 1, 2, 3, 4

# The part on which each of the 133 keypoints lies; shoulders belong to trunk and arm alike.
KEYPOINT_PARTS = np.full(133, TRUNK)
KEYPOINT_PARTS[[0, 1, 2, 3, 4]] = HEAD
KEYPOINT_PARTS[FACE] = HEAD
KEYPOINT_PARTS[[5, 7, 9]] = LEFT_ARM
KEYPOINT_PARTS[[6, 8, 10]] = RIGHT_ARM
KEYPOINT_PARTS[LEFT_HAND] = LEFT_ARM
KEYPOINT_PARTS[RIGHT_HAND] = RIGHT_ARM

# Half axes of the head, in figure heights. Heads and hands are large, as in a cartoon, so that
# their points stay apart in small pictures.
_HEAD_X, _HEAD_Y = 0.112, 0.138


@dataclass(frozen=True)
class Figure:
    """A person before it is painted.

    Args:
        shapes: display list, in pixels.
        keypoints: (133, 2) float64, x and y in pixels, in COCO-WholeBody's order.
    """

    shapes: list[Shape]
    keypoints: np.ndarray


def _turn(angle: float) -> np.ndarray:
    """Unit vector that hangs down at angle 0 and swings to the picture's right."""
    return np.array([np.sin(angle), np.cos(angle)])


def _hand(rng: Rng, wrist: np.ndarray, angle: float, side: int) -> np.ndarray:
    """21 points of a hand: the root, then thumb, index, middle, ring and little finger.

    Args:
        rng: draws how far the fingers spread and bend.
        wrist: (2,) where the hand begins, figure coordinates.
        angle: direction of the hand, as `_turn` has it.
        side: +1 for the left hand, -1 for the right.

    Returns:
        (21, 2) figure coordinates; each finger from knuckle to tip.
    """
    length = 0.125
    spread = rng.uniform(0.8, 1.15)
    # The thumb points towards the body (palms back) or away from it (palms forward).
    facing = side if rng.random() < 0.5 else -side
    points = [wrist]
    for finger, (fan, knuckle, reach) in enumerate(
        [(-0.95, 0.25, 0.75), (-0.42, 0.48, 1.0), (-0.08, 0.5, 1.06), (0.25, 0.47, 0.98),
         (0.58, 0.42, 0.82)]
    ):  # fmt: skip
        direction = angle + facing * fan * spread
        bend = rng.uniform(-0.15, 0.15) - facing * (0.12 if finger == 0 else 0)
        for joint in range(4):
            along = knuckle + (reach - knuckle) * joint / 3
            points.append(wrist + length * along * _turn(direction + bend * joint / 3))
    return np.array(points)


def _face(rng: Rng) -> np.ndarray:
    """68 points of a face in head coordinates: x and y from -1 to 1 on the head's outline.

    Order: jaw from the picture's left to its right (17), brows (5 + 5), nose (4 + 5), eyes
    (6 + 6), outer lips (12), inner lips (8).
    """
    t = np.pi * np.linspace(-0.02, 1.02, 17)
    jaw = np.stack([-np.cos(t), 0.05 + 0.95 * np.sin(t)], 1)

    arch, lift = rng.uniform(0.06, 0.14), rng.uniform(-0.05, 0.04)
    x = np.linspace(0.66, 0.16, 5)
    brow_y = -0.36 + lift - arch * np.sin(np.linspace(0.3, np.pi - 0.1, 5))
    brow = np.stack([-x, brow_y], 1)
    brows = np.concatenate([brow, (brow * [-1, 1])[::-1]])

    bridge = np.stack([np.zeros(4), np.linspace(-0.14, 0.24, 4)], 1)
    nostrils = np.stack(
        [np.linspace(-0.19, 0.19, 5), 0.34 + 0.05 * np.array([0, 0.6, 1, 0.6, 0])], 1
    )

    open_eye = rng.uniform(0.08, 0.14)
    t = np.array([180, 120, 60, 0, -60, -120]) * np.pi / 180  # outer corner first, over the top
    eye = np.stack([-0.41 + 0.21 * np.cos(t), -0.13 - open_eye * np.sin(t)], 1)
    other = (eye * [-1, 1])[[3, 2, 1, 0, 5, 4]]  # inner corner first

    half, smile = rng.uniform(0.28, 0.4), rng.uniform(-0.05, 0.12)
    gap, lip = rng.uniform(0.0, 0.1), 0.09

    def lips(degrees: np.ndarray, scale: float, thick: float) -> np.ndarray:
        t = degrees * np.pi / 180
        x = half * scale * np.cos(t)
        y = 0.62 - thick * np.sin(t) - smile * (x / half) ** 2
        return np.stack([x, y], 1)

    outer = lips(np.arange(180, -180, -30), 1.0, lip + gap)
    inner = lips(np.arange(180, -180, -45), 0.78, 0.02 + gap)

    turn = rng.uniform(-0.4, 0.4)  # yaw in radians: what lies in front of the outline shifts
    features = np.concatenate([brows, bridge, nostrils, eye, other, outer, inner])
    depth = np.sqrt(np.clip(1 - features[:, 0] ** 2 - 0.6 * features[:, 1] ** 2, 0, 1))
    features[:, 0] = features[:, 0] * np.cos(turn) + 0.8 * depth * np.sin(turn)
    return np.concatenate([jaw, features])


def _pose(rng: Rng) -> tuple[np.ndarray, float]:
    """Draw a pose: (133, 2) points in figure coordinates, and the head's roll in radians."""
    points = np.zeros((133, 2))
    neck = np.array([0.0, -0.695])
    sway = rng.uniform(-0.03, 0.03)
    pelvis = np.array([sway, -0.375])
    nod = rng.uniform(-0.22, 0.22)
    head = neck - _turn(-nod) * (_HEAD_Y + 0.025)

    face = place(_face(rng) * [_HEAD_X, _HEAD_Y], head, 1.0, nod)
    points[FACE] = face
    points[0] = face[30]  # nose: the end of its bridge
    points[1], points[2] = face[42:48].mean(0), face[36:42].mean(0)
    points[3], points[4] = place(np.array([[1.02, -0.02], [-1.02, -0.02]]) * [_HEAD_X, _HEAD_Y],
                                 head, 1.0, nod)  # fmt: skip

    for side, hand, foot in ((1, LEFT_HAND, 17), (-1, RIGHT_HAND, 20)):
        off = 0 if side == 1 else 1
        shoulder = neck + [side * 0.135, 0.04]
        lift = rng.choice([rng.uniform(0.12, 0.7), rng.uniform(0.7, 1.6), rng.uniform(1.6, 2.5)],
                          p=[0.5, 0.3, 0.2])  # fmt: skip
        bend = rng.uniform(-0.25, 1.2)
        elbow = shoulder + 0.145 * _turn(side * lift)
        lower = side * (lift + (bend if lift > 0.7 else -0.4 * bend + 0.3))
        wrist = elbow + 0.13 * _turn(lower)
        points[5 + off], points[7 + off], points[9 + off] = shoulder, elbow, wrist
        points[hand] = _hand(rng, wrist, lower + rng.uniform(-0.3, 0.3), side)

        hip = pelvis + [side * 0.075, 0.0]
        stride = rng.uniform(-0.05, 0.32)
        knee = hip + 0.17 * _turn(side * stride)
        ankle = knee + 0.155 * _turn(side * (stride - rng.uniform(-0.05, 0.35)))
        points[11 + off], points[13 + off], points[15 + off] = hip, knee, ankle
        out = rng.uniform(0.35, 1.0)
        toe = np.array([side * 0.075 * out, 0.045])
        points[foot] = ankle + toe + [-side * 0.012, 0.008]  # big toe
        points[foot + 1] = ankle + toe + [side * 0.022, -0.004]  # small toe
        points[foot + 2] = ankle + [-side * 0.022 * out, 0.03]  # heel
    return points, nod


def _darker(color: tuple[int, int, int], by: float) -> tuple[int, int, int]:
    return tuple(round(c * by) for c in color)  # type: ignore[return-value]


def make_figure(rng: Rng, base: tuple[float, float], height: float, unit: float) -> Figure:
    """Draw a person's pose, dress and face.

    Args:
        rng: the scene's generator.
        base: x and y in pixels of the ground between the feet.
        height: from sole to crown in pixels.
        unit: the picture's scale (short side / 160).

    Returns:
        The display list and the 133 keypoints, in pixels; parts of both may lie outside the
        picture.
    """
    local, nod = _pose(rng)
    lean = rng.uniform(-0.12, 0.12)
    girth = rng.uniform(0.85, 1.25)
    k = place(local, base, height, lean)

    # Skin from fair to dark, still light enough for dark features to show on it.
    skin = random_color(rng, (0.02, 0.1), saturation=(0.2, 0.6), value=(0.5, 1.0))
    ink = _darker(skin, 0.25 if luma(skin) > 90 else 0.1)
    edge = _darker(skin, 0.55)
    hair = contrasting(rng, skin, 50)
    # Clothes are any colour, but paler than things.
    cloth, trousers = (random_color(rng, saturation=(0.05, 0.45)) for _ in range(2))
    shoes = random_color(rng, saturation=(0.05, 0.45), value=(0.1, 0.5))
    shirt = fill(rng, cloth, unit, 'plain' if rng.random() < 0.5 else 'stripes')

    def local_shape(
        points: ArrayLike, fill: Color | Texture, part: int, width: float | None = None
    ) -> Shape:
        thick = None if width is None else width * height
        return Shape(place(np.asarray(points), base, height, lean), fill, thick, part)

    shapes: list[Shape] = []
    # Feet and legs.
    for ankle, knee, hip, foot in ((15, 13, 11, 17), (16, 14, 12, 20)):
        sole = np.stack([k[foot + 2], k[foot], k[foot + 1]])
        shapes.append(Shape(np.concatenate([sole, k[[ankle]]]), shoes, None, TRUNK))
        shapes.append(Shape(np.concatenate([sole, sole[:1]]), shoes, 0.04 * height, TRUNK))
        shapes.append(Shape(k[[hip, knee, ankle]], trousers, 0.082 * girth * height, TRUNK))
    # Trunk: shoulders to hips, then the neck.
    s, h = local[[5, 6]], local[[11, 12]]
    wide = 0.045 * girth
    trunk = np.array([
        s[0] + [0.02, -0.028], s[0] + [0.03, 0.03], h[0] + [wide, 0.03],
        h[1] + [-wide, 0.03], s[1] + [-0.03, 0.03], s[1] + [-0.02, -0.028],
    ])  # fmt: skip
    shapes.append(local_shape(h + [0, 0.005], trousers, TRUNK, 0.1 * girth))
    shapes.append(local_shape(trunk, shirt, TRUNK))
    shapes.append(local_shape([[0, -0.72], [0, -0.66]], edge, TRUNK, 0.08))

    # Head: hair behind, ears, face, hair above the brows, features.
    mid = (k[3] + k[4]) / 2
    roll = lean + nod
    axes = np.array([_HEAD_X, _HEAD_Y]) * height
    shapes.append(Shape(ellipse(mid, axes * [1.13, 1.1], roll), hair, None, HEAD))
    for ear in (3, 4):
        shapes.append(Shape(ellipse(k[ear], axes * [0.2, 0.26], roll), edge, None, HEAD))
    shapes.append(Shape(ellipse(mid, axes, roll), skin, None, HEAD))
    fringe = rng.uniform(-0.75, -0.55)
    t = np.linspace(np.pi * 1.05, np.pi * 1.95, 12)
    cap = np.stack([1.06 * np.cos(t), 1.08 * np.sin(t)], 1)
    cap = np.concatenate([cap, [[0.75, fringe], [rng.uniform(-0.4, 0.4), fringe - 0.1],
                                [-0.75, fringe]]])  # fmt: skip
    shapes.append(Shape(place(cap * axes, mid, 1.0, roll), hair, None, HEAD))

    f = k[FACE]
    fine, bold = 0.009 * height, 0.016 * height
    shapes.append(Shape(f[0:17], edge, fine, HEAD))
    for brow in (f[17:22], f[22:27]):
        shapes.append(Shape(brow, ink, bold, HEAD))
    for eye in (f[36:42], f[42:48]):
        shapes.append(Shape(eye, (250, 250, 250), None, HEAD))
        pupil = ellipse(eye.mean(0), (0.085 * axes[0], 0.085 * axes[0]), points=10)
        shapes.append(Shape(eye[[0, 1, 2, 3]], ink, fine, HEAD))
        shapes.append(Shape(pupil, (15, 15, 20), None, HEAD))
    shapes.append(Shape(f[27:31], edge, fine, HEAD))
    shapes.append(Shape(f[31:36], ink, fine, HEAD))
    lips = (200, 60, 70) if rng.random() < 0.6 else _darker(skin, 0.45)
    shapes.append(Shape(f[48:60], lips, None, HEAD))
    shapes.append(Shape(f[60:68], (70, 10, 20), None, HEAD))

    # Arms and hands, over everything else.
    for shoulder, elbow, wrist, hand, part in (
        (5, 7, 9, LEFT_HAND, LEFT_ARM),
        (6, 8, 10, RIGHT_HAND, RIGHT_ARM),
    ):
        shapes.append(Shape(k[[shoulder, elbow]], cloth, 0.07 * girth * height, part))
        shapes.append(Shape(k[[elbow, wrist]], skin, 0.052 * girth * height, part))
        j = k[hand]
        palm = np.concatenate([j[[0]], j[[1, 5, 9, 13, 17]]])
        shapes.append(Shape(palm, skin, None, part))
        shapes.append(Shape(np.concatenate([palm, palm[:1]]), skin, 0.014 * height, part))
        for first in (1, 5, 9, 13, 17):
            shapes.append(Shape(j[first : first + 4], skin, 0.0155 * height, part))
        # Creases between the fingers show the knuckles.
        for first in (5, 9, 13):
            between = (j[[first]] + j[[first + 4]]) / 2
            shapes.append(Shape(np.concatenate([j[[0]] * 0.4 + between * 0.6, between]), edge,
                                1.0, part))  # fmt: skip
    return Figure(shapes, k)
