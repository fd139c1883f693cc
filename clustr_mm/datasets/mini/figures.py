"""Persons with all 133 COCO-WholeBody keypoints.

A figure is drawn from its keypoints, so that each of them can be seen in the picture. It stands at
y = 0 with the top of its head at y = -1, and faces the viewer: its left is the picture's right.
Heads and hands are large, as in a cartoon, so that their points stay apart in small pictures.
"""

import numpy as np
from numpy.typing import ArrayLike

from clustr_mm.datasets.mini import drawing
from clustr_mm.datasets.mini.drawing import Color, Rng, Shape, contrasting, ellipse, place

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
KEYPOINT_PARTS = np.full(133, TRUNK)
KEYPOINT_PARTS[:5] = KEYPOINT_PARTS[FACE] = HEAD
KEYPOINT_PARTS[5:11] = [LEFT_ARM, RIGHT_ARM] * 3
KEYPOINT_PARTS[LEFT_HAND], KEYPOINT_PARTS[RIGHT_HAND] = LEFT_ARM, RIGHT_ARM

_HEAD = np.array([0.112, 0.138])  # half axes, in figure heights


def _towards(angle: ArrayLike) -> np.ndarray:
    """Unit vectors (..., 2) that hang down at angle 0 and swing to the picture's right."""
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


def _hand(rng: Rng, wrist: np.ndarray, angle: float, side: int) -> np.ndarray:
    """21 points: the wrist, then thumb to little finger, each knuckle to tip; left is side 1."""
    # The thumb points towards the body (palms back) or away from it (palms forward).
    facing = side if rng.random() < 0.5 else -side
    fan = angle + facing * rng.uniform(0.8, 1.15) * np.array([-0.95, -0.42, -0.08, 0.25, 0.58])
    bend = rng.uniform(-0.15, 0.15, 5) - facing * np.array([0.12, 0, 0, 0, 0])
    knuckles, tips = np.array([[0.25, 0.48, 0.5, 0.47, 0.42], [0.75, 1, 1.06, 0.98, 0.82]]) * 0.125
    along = np.linspace(0, 1, 4)[:, None]  # (4, 1), fingers are (5,)
    joints = (knuckles + (tips - knuckles) * along)[..., None] * _towards(fan + bend * along)
    return np.concatenate([wrist[None], wrist + joints.transpose(1, 0, 2).reshape(20, 2)])


def _face(rng: Rng) -> np.ndarray:
    """Jaw (17), brows (5 + 5), nose (4 + 5), eyes (6 + 6), lips (12 + 8): the head has radius 1."""
    t = np.pi * np.linspace(-0.02, 1.02, 17)
    jaw = np.stack([-np.cos(t), 0.05 + 0.95 * np.sin(t)], 1)
    arch = rng.uniform(-0.41, -0.32) - rng.uniform(0.06, 0.14) * np.sin(np.linspace(0.3, 3, 5))
    brow = np.stack([np.linspace(-0.66, -0.16, 5), arch], 1)
    bridge = np.stack([np.zeros(4), np.linspace(-0.14, 0.24, 4)], 1)
    nostrils = np.array([[-0.19, 0.34], [-0.1, 0.37], [0, 0.39], [0.1, 0.37], [0.19, 0.34]])
    t = np.radians([180, 120, 60, 0, -60, -120])  # outer corner first, over the top
    eye = np.stack([-0.41 + 0.21 * np.cos(t), -0.13 - rng.uniform(0.08, 0.14) * np.sin(t)], 1)
    half, smile, gap = rng.uniform(0.28, 0.4), rng.uniform(-0.05, 0.12), rng.uniform(0.0, 0.1)

    def lips(count: int, share: float, thick: float) -> np.ndarray:
        t = np.pi - np.arange(count) * 2 * np.pi / count
        x = share * np.cos(t)
        return np.stack([half * x, 0.62 - (thick + gap) * np.sin(t) - smile * x**2], 1)

    front = np.concatenate([
        brow, (brow * [-1, 1])[::-1], bridge, nostrils, eye, (eye * [-1, 1])[[3, 2, 1, 0, 5, 4]],
        lips(12, 1.0, 0.09), lips(8, 0.78, 0.02),
    ])  # fmt: skip
    turn = rng.uniform(-0.4, 0.4)  # yaw: what lies in front of the outline shifts
    depth = np.sqrt(np.clip(1 - front[:, 0] ** 2 - 0.6 * front[:, 1] ** 2, 0, 1))
    front[:, 0] = front[:, 0] * np.cos(turn) + 0.8 * depth * np.sin(turn)
    return np.concatenate([jaw, front])


def _pose(rng: Rng) -> tuple[np.ndarray, float]:
    """Draw a pose: (133, 2) points in figure coordinates, and the head's roll in radians."""
    points = np.zeros((133, 2))
    neck, pelvis = np.array([0.0, -0.695]), np.array([rng.uniform(-0.03, 0.03), -0.375])
    nod = rng.uniform(-0.22, 0.22)
    head = neck - _towards(-nod) * (_HEAD[1] + 0.025)
    ears = [[1.02, -0.02], [-1.02, -0.02]]
    skull = place(np.concatenate([_face(rng), ears]) * _HEAD, head, 1.0, nod)
    points[FACE], points[3:5] = skull[:68], skull[68:]
    points[:3] = skull[30], skull[42:48].mean(0), skull[36:42].mean(0)  # nose, eyes

    for side, off, hand, foot in ((1, 0, LEFT_HAND, 17), (-1, 1, RIGHT_HAND, 20)):
        lift = rng.uniform(*((0.12, 0.7), (0.7, 1.6), (1.6, 2.5))[rng.choice(3, p=[0.5, 0.3, 0.2])])
        bend = rng.uniform(-0.25, 1.2)
        lower = side * (lift + (bend if lift > 0.7 else 0.3 - 0.4 * bend))
        shoulder = neck + [side * 0.135, 0.04]
        elbow = shoulder + 0.145 * _towards(side * lift)
        wrist = elbow + 0.13 * _towards(lower)
        points[[5 + off, 7 + off, 9 + off]] = shoulder, elbow, wrist
        points[hand] = _hand(rng, wrist, lower + rng.uniform(-0.3, 0.3), side)
        stride, out = rng.uniform(-0.05, 0.32), rng.uniform(0.35, 1.0)
        hip = pelvis + [side * 0.075, 0.0]
        knee = hip + 0.17 * _towards(side * stride)
        ankle = knee + 0.155 * _towards(side * (stride - rng.uniform(-0.05, 0.35)))
        points[[11 + off, 13 + off, 15 + off]] = hip, knee, ankle
        toes_heel = np.array([[0.075, -0.012, 0.053], [0.075, 0.022, 0.041], [-0.022, 0, 0.03]])
        points[foot : foot + 3] = ankle + toes_heel @ [[side * out, 0], [side, 0], [0, 1]]
    return points, nod


def make_figure(rng: Rng, base: ArrayLike, height: float) -> tuple[list[Shape], np.ndarray]:
    """Draw a person `height` pixels tall on `base`: shapes and (133, 2) keypoints, in pixels."""
    points, nod = _pose(rng)
    lean, girth = rng.uniform(-0.12, 0.12), rng.uniform(0.85, 1.25)
    k = place(points, base, height, lean)
    # From fair to dark, still light enough for dark features to show on it.
    fair, red, yellow = rng.uniform(110, 250), rng.uniform(0.62, 0.85), rng.uniform(0.6, 0.9)
    skin, edge, ink = (
        (round(v), round(v * red), round(v * red * yellow)) for v in (fair, fair * 0.55, fair * 0.2)
    )
    hair = contrasting(rng, skin)
    # Clothes are any colour, but paler than things.
    cloth, trousers = (drawing.random_color(rng, (0.05, 0.45), (0.3, 0.95)) for _ in range(2))
    shoes = drawing.random_color(rng, (0.05, 0.45), (0.1, 0.5))
    shapes: list[Shape] = []

    def area(points: np.ndarray, color: Color, part: int) -> None:
        shapes.append(Shape(points, color, None, part))

    def line(points: np.ndarray, color: Color, width: float, part: int) -> None:
        shapes.append(Shape(points, color, width * height, part))

    for ankle, knee, hip, foot in ((15, 13, 11, 17), (16, 14, 12, 20)):
        line(k[[foot + 2, foot, foot + 1, ankle, foot + 2]], shoes, 0.045, TRUNK)
        line(k[[hip, knee, ankle]], trousers, 0.082 * girth, TRUNK)
    line(k[[11, 12]], trousers, 0.1 * girth, TRUNK)
    area(k[[5, 6, 12, 11]], cloth, TRUNK)
    line(k[[5, 6, 12, 11, 5]], cloth, 0.08 * girth, TRUNK)
    if rng.random() < 0.5:
        stripe = contrasting(rng, cloth)
        for share in (0.2, 0.4, 0.6, 0.8):
            line(k[[5, 6]] + share * (k[[11, 12]] - k[[5, 6]]), stripe, 0.03, TRUNK)

    # Head: neck, hair behind, ears, face, features.
    mid, roll, axes = (k[3] + k[4]) / 2, lean + nod, _HEAD * height
    line(np.stack([mid, k[5:7].mean(0)]), edge, 0.08, HEAD)
    area(ellipse(mid + place([[0, -0.025]], (0, 0), height, roll), axes * 1.12, roll), hair, HEAD)
    for ear in k[3:5]:
        area(ellipse(ear, axes * [0.2, 0.26], roll), edge, HEAD)
    area(ellipse(mid, axes, roll)[1:12], skin, HEAD)
    face = k[FACE]
    area(np.concatenate([face[:17], face[[24, 19]]]), skin, HEAD)  # jaw, then over the brows
    line(face[:17], edge, 0.009, HEAD)
    for brow, eye in ((face[17:22], face[36:42]), (face[22:27], face[42:48])):
        line(brow, ink, 0.016, HEAD)
        area(eye, (250, 250, 250), HEAD)
        line(eye[:4], ink, 0.009, HEAD)
        area(ellipse(eye.mean(0), axes[[0, 0]] * 0.085), (15, 15, 20), HEAD)
    line(face[27:31], edge, 0.009, HEAD)
    line(face[31:36], ink, 0.009, HEAD)
    area(face[48:60], (200, 60, 70), HEAD)
    area(face[60:], (70, 10, 20), HEAD)

    # Arms and hands, over everything else.
    for arm, hand, part in (([5, 7, 9], LEFT_HAND, LEFT_ARM), ([6, 8, 10], RIGHT_HAND, RIGHT_ARM)):
        line(k[arm[:2]], cloth, 0.07 * girth, part)
        line(k[arm[1:]], skin, 0.052 * girth, part)
        root, fingers = k[hand][:1], k[hand][1:].reshape(5, 4, 2)
        area(np.concatenate([root, fingers[:, 0]]), skin, part)
        for finger in fingers:
            line(np.concatenate([root, finger]), skin, 0.0155, part)
    return shapes, k
