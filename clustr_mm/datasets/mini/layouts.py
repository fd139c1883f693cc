"""Scenes as files: the layouts of ADE20K, COCO instances, COCO-WholeBody and ImageNet.

A writer takes the scenes of one split one by one. Ids, names, fields and file names are those of
the public data sets, so that a config written for one of them reads the mini data set unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from clustr_mm.datasets.mini.classes import BY_NAME, CLASSES, COCO_CATEGORIES, LABELS, THINGS
from clustr_mm.datasets.mini.figures import (
    BODY,
    BODY_NAMES,
    FACE,
    FEET,
    LEFT_HAND,
    RIGHT_HAND,
)
from clustr_mm.datasets.mini.scenes import SPLITS, Instance, Scene, make_scene

# Folders of the classes that ImageNet's layout has, in the order of their labels: of the folders.
IMAGENET_CLASSES = {c.name: c.wnid for c in sorted(CLASSES, key=lambda c: c.wnid or '') if c.wnid}

_ADE_IDS = np.array([0, *(c.ade_id for c in CLASSES)], np.uint8)
_SKELETON = [
    [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
    [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
]  # fmt: skip


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture."""
    _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    path.write_bytes(data.tobytes())  # unlike cv2.imwrite, this says why it fails


def rle(mask: np.ndarray) -> dict:
    """COCO's run-length code of a mask, uncompressed: exact, and needs no pycocotools to write.

    Args:
        mask: (H, W) bool.

    Returns:
        ``size`` (H, W) and ``counts``, lengths of runs down the columns, the first one of zeros.
    """
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(ends).tolist()
    if counts[-1] == 0:  # the mask reaches the last pixel
        counts.pop()
    return dict(size=list(mask.shape), counts=counts)


class AdeWriter:
    """ADEChallengeData2016: pictures, and label pngs with 0 (other) and 1 to 150.

    Args:
        root: folder that becomes the data_root; made if need be.
        split: 'train' or 'val'.
    """

    def __init__(self, root: Path, split: str) -> None:
        folder = {'train': 'training', 'val': 'validation'}[split]
        self.prefix = f'ADE_{split}_'
        self.images = root / 'images' / folder
        self.labels = root / 'annotations' / folder
        self.images.mkdir(parents=True)
        self.labels.mkdir(parents=True)

    def add(self, index: int, scene: Scene) -> None:
        """Write scene number `index`, counted from 0 (file names count from 1)."""
        name = f'{self.prefix}{index + 1:08d}'
        write_jpeg(self.images / f'{name}.jpg', scene.image)
        _, data = cv2.imencode('.png', _ADE_IDS[scene.semantic])
        (self.labels / f'{name}.png').write_bytes(data.tobytes())

    def close(self) -> None:
        """Nothing is left to write."""


class CocoWriter:
    """COCO 2017: pictures, and instances or whole-body keypoints or both as json.

    Args:
        root: folder that becomes the data_root; made if need be.
        split: 'train' or 'val'.
        instances: whether to write ``instances_{split}2017.json``.
        wholebody: whether to write ``coco_wholebody_{split}_v1.0.json``.
    """

    def __init__(self, root: Path, split: str, instances: bool, wholebody: bool) -> None:
        self.split = split
        self.images = root / f'{split}2017'
        self.annotations = root / 'annotations'
        self.images.mkdir(parents=True)
        self.annotations.mkdir(exist_ok=True)
        self.records: list[dict] = []
        self.things: list[dict] | None = [] if instances else None
        self.persons: list[dict] | None = [] if wholebody else None

    def add(self, index: int, scene: Scene) -> None:
        """Write the picture of scene number `index` and keep its annotations for `close`."""
        image_id = index + 1
        name = f'{image_id:012d}.jpg'
        write_jpeg(self.images / name, scene.image)
        height, width = scene.semantic.shape
        self.records.append(
            dict(license=1, file_name=name, height=height, width=width, id=image_id,
                 date_captured='2026-01-01 00:00:00')
        )  # fmt: skip
        for i, instance in enumerate(scene.instances):
            annotation = _coco_annotation(instance, image_id, image_id * 100 + i)
            if self.things is not None:
                self.things.append(annotation)
            if self.persons is not None and instance.keypoints is not None:
                self.persons.append({**annotation, **_wholebody_fields(instance)})

    def close(self) -> None:
        """Write the json files."""
        if self.things is not None:
            name = f'instances_{self.split}2017.json'
            self._dump(name, self.things, list(COCO_CATEGORIES))
        if self.persons is not None:
            person = dict(COCO_CATEGORIES[0], keypoints=BODY_NAMES, skeleton=_SKELETON)
            self._dump(f'coco_wholebody_{self.split}_v1.0.json', self.persons, [person])

    def _dump(self, name: str, annotations: list[dict], categories: list[dict]) -> None:
        info = dict(description='Mini scenes of clustr-mm', version='1.0', year=2026)
        text = json.dumps(
            dict(
                info=info,
                licenses=[dict(id=1, name='generated', url='')],
                images=self.records,
                annotations=annotations,
                categories=categories,
            )
        )
        (self.annotations / name).write_text(text)


def _coco_annotation(instance: Instance, image_id: int, annotation_id: int) -> dict:
    return dict(
        segmentation=rle(instance.mask),
        area=float(instance.area),
        iscrowd=0,
        image_id=image_id,
        bbox=[float(v) for v in instance.box],
        category_id=BY_NAME[instance.name].coco_id,
        id=annotation_id,
    )


def _wholebody_fields(instance: Instance) -> dict:
    """The fields that COCO-WholeBody V1.0 adds to a person's annotation."""
    points = instance.keypoints
    assert points is not None
    body = points[BODY]
    out = dict(keypoints=_triples(body), num_keypoints=int((body[:, 2] > 0).sum()))
    feet = points[FEET]
    out.update(foot_valid=bool((feet[:, 2] > 0).any()), foot_kpts=_triples(feet))
    height, width = instance.mask.shape
    for name, part in (('face', FACE), ('lefthand', LEFT_HAND), ('righthand', RIGHT_HAND)):
        group = points[part]
        labelled = group[group[:, 2] > 0, :2]
        # As in the real data, a face or hand is annotated if it can be recognised, else all zero.
        valid = (group[:, 2] == 2).mean() >= 0.5 and np.ptp(labelled, axis=0).max() >= 4
        box = [0.0, 0.0, 0.0, 0.0]
        if valid:
            low = np.maximum(labelled.min(axis=0) - 1, 0)
            high = np.minimum(labelled.max(axis=0) + 1, [width - 1, height - 1])
            box = [round(float(v), 2) for v in (*low, *(high - low))]
        out[f'{name}_box'] = box
        out[f'{name}_valid'] = bool(valid)
        out[f'{name}_kpts'] = _triples(group if valid else np.zeros_like(group))
    return out


def _triples(points: np.ndarray) -> list[float]:
    """(n, 3) to COCO's flat list x, y, v, ..."""
    out: list[float] = []
    for x, y, flag in points.tolist():
        out += [round(x, 2), round(y, 2), int(flag)]
    return out


def write_imagenet(
    root: Path,
    split: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    tick: Callable[[], None],
) -> None:
    """Write ``<split>/<wnid>/*.JPEG``: crops of the scenes in which one class dominates.

    Args:
        root: folder that becomes the data_root; made if need be.
        split: 'train' or 'val'.
        count: pictures in all, shared evenly among the classes.
        size: height and width of a picture in pixels.
        seed: the scenes' seed.
        tick: called after every picture.
    """
    due = {
        name: count // len(IMAGENET_CLASSES) + (i < count % len(IMAGENET_CLASSES))
        for i, name in enumerate(IMAGENET_CLASSES)
    }
    for folder in IMAGENET_CLASSES.values():
        (root / split / folder).mkdir(parents=True)
    written, index = 0, 0
    while written < count:
        # Twice the size, so that a crop has about as many pixels as the picture made of it.
        scene = make_scene(seed, split, index, (2 * size[0], 2 * size[1]))
        rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
        for name, image in _crops(rng, scene, size, {n for n, left in due.items() if left}):
            if due[name] == 0:
                continue
            due[name] -= 1
            written += 1
            wnid = IMAGENET_CLASSES[name]
            stem = f'{wnid}_{written:05d}' if split == 'train' else f'ILSVRC2012_val_{written:08d}'
            write_jpeg(root / split / wnid / f'{stem}.JPEG', image)
            tick()
        index += 1


def _crops(
    rng: np.random.Generator, scene: Scene, size: tuple[int, int], wanted: set[str]
) -> Iterable[tuple[str, np.ndarray]]:
    """Yield (class, picture) for the windows of a scene that show one wanted class above all."""
    height, width = scene.semantic.shape
    aspect = size[1] / size[0]

    def cut(cx: float, cy: float, tall: float) -> tuple[int, int, int, int]:
        tall = min(tall, height, width / aspect)
        wide = tall * aspect
        x0 = round(min(max(cx - wide / 2, 0), width - wide))
        y0 = round(min(max(cy - tall / 2, 0), height - tall))
        return x0, y0, round(wide), round(tall)

    windows = []
    for instance in scene.instances:
        x, y, w, h = instance.box
        if instance.name not in wanted or max(w, h) < 0.15 * min(height, width):
            continue
        window = cut(x + w / 2, y + h / 2, max(h, w / aspect) * rng.uniform(1.1, 1.4))
        x0, y0, wide, tall = window
        inside = scene.semantic[y0 : y0 + tall, x0 : x0 + wide]
        shares = np.bincount(inside.ravel(), minlength=len(LABELS) + 1) / inside.size
        own = instance.mask[y0 : y0 + tall, x0 : x0 + wide].mean()
        rivals = max(shares[LABELS[c.name]] for c in CLASSES
                     if c.is_thing and c.name != instance.name)  # fmt: skip
        if own > 0.15 and own > 1.5 * rivals:
            windows.append((instance.name, window))
    for name in sorted(wanted - set(THINGS)):
        for _ in range(12):
            cx, cy = rng.uniform(0, width), rng.uniform(0, height)
            window = cut(cx, cy, rng.uniform(0.3, 0.6) * height)
            x0, y0, wide, tall = window
            if (scene.semantic[y0 : y0 + tall, x0 : x0 + wide] == LABELS[name]).mean() > 0.75:
                windows.append((name, window))
                break
    for name, (x0, y0, wide, tall) in windows:
        crop = scene.image[y0 : y0 + tall, x0 : x0 + wide]
        shrinks = tall > size[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        yield name, cv2.resize(crop, (size[1], size[0]), interpolation=how)
