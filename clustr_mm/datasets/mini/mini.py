"""The mini data set on disk: built whole or not at all, and never over anything.

Ids, names and fields are those of the public data sets, so that their configs read it unchanged. It
is built in a hidden folder beside its place and renamed when it is complete, so a folder with a
manifest is a whole one; the same request finds it there and returns at once.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from clustr_mm.datasets.mini import spec
from clustr_mm.datasets.mini.figures import BODY, BODY_NAMES, FACE, FEET, LEFT_HAND, RIGHT_HAND
from clustr_mm.datasets.mini.scenes import Instance, Scene, make_scene
from clustr_mm.datasets.mini.spec import MiniData, MiniDataError

MANIFEST = 'mini_data.json'  # the request and a digest of what drew it
_ADE_IDS = np.array([0, *(c.ade_id for c in spec.CLASSES)], np.uint8)


def build(
    out: str | os.PathLike,
    data: MiniData | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Path]:
    """Make a mini data set, or find it made.

    Args:
        out: folder to make; it may be there if it is empty.
        data: what to make; None means the defaults.
        progress: called with the pictures done and their total.

    Returns:
        data_root of each layout, for `--data-root`.

    Raises:
        MiniDataError: if `out` is a file or holds anything else.
        OSError: if it cannot be written; nothing half-made is left then.
    """
    data = data or MiniData()
    folder = Path(out).resolve()  # a link's folder, not the link, is filled
    sources = b''.join(source.read_bytes() for source in sorted(Path(__file__).parent.glob('*.py')))
    request = asdict(data) | {'generator': hashlib.sha256(sources).hexdigest()}
    manifest = json.dumps(request, indent=1)
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.partial')
    try:
        if not _is_made(folder, manifest):
            partial.mkdir(parents=True)
            _draw(_roots(partial, data), data, progress)
            (partial / MANIFEST).write_text(manifest)
            if not _is_made(folder, manifest):  # by somebody else meanwhile
                os.rename(partial, folder)  # takes the place of an empty folder
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _roots(folder, data)


def _is_made(folder: Path, manifest: str) -> bool:
    """Whether the data set is there; an error if something else is."""
    if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_text() == manifest:
        return True
    if folder.exists() and (folder.is_file() or os.listdir(folder)):
        raise MiniDataError(f'{folder} holds something else: name another, or remove it first')
    return False


def _roots(folder: Path, data: MiniData) -> dict[str, Path]:
    """data_root of each layout."""
    ade = 'ADEChallengeData2016'
    if data.layout != 'all':
        return {data.layout: folder / ade if data.layout == 'ade20k' else folder}
    below = dict(ade20k=f'ade/{ade}', coco='coco', coco_wholebody='coco', imagenet='imagenet')
    return {layout: folder / root for layout, root in below.items()}


def _draw(roots: dict[str, Path], data: MiniData, progress: Callable[[int, int], None]) -> None:
    coco = roots.get('coco') or roots.get('coco_wholebody')
    done, total = 0, len(set(roots.values())) * (data.train + data.val)

    def scenes(split: str, count: int, subjects: Sequence[str | None]) -> Iterator[Scene]:
        nonlocal done
        for index in range(count):
            yield make_scene(data.seed, split, index, data.size, subjects[index % len(subjects)])
            done += 1
            progress(done, total)

    for split, count in (('train', data.train), ('val', data.val)):
        if 'ade20k' in roots:
            _write_ade(roots['ade20k'], split, scenes(split, count, [None]))
        if coco is not None:
            _write_coco(coco, split, scenes(split, count, [None]), roots)
        if 'imagenet' in roots:
            subjects = scenes(split, count, spec.IMAGENET_NAMES)
            _write_imagenet(roots['imagenet'], split, subjects)


def _write(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) RGB picture or an (H, W) label map; the suffix says as what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, code = cv2.imencode(path.suffix.lower(), image[..., ::-1] if image.ndim == 3 else image)
    path.write_bytes(code.tobytes())  # unlike cv2.imwrite, this says why it fails


def _write_ade(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    folder = {'train': 'training', 'val': 'validation'}[split]
    for number, scene in enumerate(scenes, start=1):
        name = f'{folder}/ADE_{split}_{number:08d}'
        _write(root / 'images' / f'{name}.jpg', scene.image)
        _write(root / 'annotations' / f'{name}.png', _ADE_IDS[scene.semantic])


def _write_imagenet(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    for number, scene in enumerate(scenes):
        wnid = spec.BY_NAME[spec.IMAGENET_NAMES[number % len(spec.IMAGENET_NAMES)]].wnid
        stem = f'{wnid}_{number}' if split == 'train' else f'ILSVRC2012_val_{number + 1:08d}'
        _write(root / split / wnid / f'{stem}.JPEG', scene.image)


def _write_coco(root: Path, split: str, scenes: Iterable[Scene], kinds: Iterable[str]) -> None:
    """Write pictures, and a json file for each of the `kinds` 'coco' and 'coco_wholebody'."""
    images, things, persons = [], [], []
    for number, scene in enumerate(scenes, start=1):
        name = f'{number:012d}.jpg'
        _write(root / f'{split}2017' / name, scene.image)
        height, width = scene.semantic.shape
        images.append(dict(id=number, file_name=name, height=height, width=width))
        for i, instance in enumerate(scene.instances):
            annotation: dict = dict(id=number * 100 + i, image_id=number, iscrowd=0)
            annotation['category_id'] = spec.BY_NAME[instance.name].coco_id
            annotation['bbox'] = [float(v) for v in instance.box]
            annotation['area'] = float(instance.mask.sum())
            annotation['segmentation'] = rle(instance.mask)
            things.append(annotation)
            if instance.keypoints is not None:
                persons.append(annotation | _wholebody(instance, instance.keypoints))
    person = dict(spec.COCO_CATEGORIES[0], keypoints=BODY_NAMES)
    (root / 'annotations').mkdir(exist_ok=True)
    made = dict(
        coco=(f'instances_{split}2017', things, spec.COCO_CATEGORIES),
        coco_wholebody=(f'coco_wholebody_{split}_v1.0', persons, [person]),
    )
    for name, annotations, categories in (made[kind] for kind in kinds if kind in made):
        content = dict(info={}, images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'{name}.json').write_text(json.dumps(content))


def rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length code of an (H, W) bool mask, written without pycocotools."""
    flat = mask.T.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    return dict(size=list(mask.shape), counts=np.diff([0, *changes, flat.size]).tolist())


def _wholebody(instance: Instance, points: np.ndarray) -> dict:
    """The fields that COCO-WholeBody V1.0 adds to a person's annotation."""
    out: dict = dict(
        keypoints=points[BODY].round(2).ravel().tolist(),
        num_keypoints=int((points[BODY, 2] > 0).sum()),
        foot_kpts=points[FEET].round(2).ravel().tolist(),
        foot_valid=bool((points[FEET, 2] > 0).any()),
    )
    limits = np.array(instance.mask.shape[::-1]) - 1
    for name, part in (('face', FACE), ('lefthand', LEFT_HAND), ('righthand', RIGHT_HAND)):
        group, known = points[part], points[part][points[part, 2] > 0, :2]
        # As in the real data, a face or hand is annotated if it can be recognised, else all zero.
        valid = (group[:, 2] == 2).mean() >= 0.5 and np.ptp(known, axis=0).max() >= 4
        box = np.zeros(4)
        if valid:
            low, high = (known.min(0) - 1).clip(0, limits), (known.max(0) + 1).clip(0, limits)
            box = np.concatenate([low, high - low])
        out[f'{name}_valid'] = bool(valid)
        out[f'{name}_box'] = box.round(2).tolist()
        out[f'{name}_kpts'] = (group * valid).round(2).ravel().tolist()
    return out
