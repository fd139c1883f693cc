"""Everything that is missing or wrong of a config's data sets, before a long run starts.

`check_data_root` looks at what decides whether a run starts, and stops at the first fault. The
audit goes on, and looks at every file: it takes minutes on a full data set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from clustr_mm.datasets.annotations import AnnotationError
from clustr_mm.datasets.check import (
    ClassFoldersError,
    DataNotFoundError,
    _datasets,
    check_class_folders,
    check_data_root,
)
from clustr_mm.datasets.files import IMAGE_SUFFIXES
from clustr_mm.datasets.images import image_fault

# Images of the public data sets, train and val. Sources: the data sets' own pages (ADE20K's scene
# parsing benchmark, COCO 2017, ILSVRC 2012); COCO-WholeBody annotates COCO's images.
EXPECTED_IMAGES = {
    'ADE20KDataset': {'train': 20210, 'val': 2000},
    'CocoDataset': {'train': 118287, 'val': 5000},
    'CocoWholeBodyDataset': {'train': 118287, 'val': 5000},
    'ImageNet': {'train': 1281167, 'val': 50000},
}
_CLASSES = {'ADE20KDataset': 150, 'CocoDataset': 80, 'ImageNet': 1000}
_IGNORED_LABEL = 255
_WORKERS = 8  # opening files is waiting, mostly

Progress = Callable[[str, int, int], None]


def audit(
    cfg: Mapping[str, Any],
    say: Callable[[str], None],
    progress: Progress,
    decode: bool = False,
    subset: bool = False,
) -> Iterator[str]:
    """Looks for every fault of a config's data sets.

    Args:
        cfg: An mmengine Config, or a dict of its form.
        say: Called with a line on what was looked at.
        progress: Called with (what, files done, files in all).
        decode: Whether to open every image, too.
        subset: Whether fewer images than the public data set has are meant.

    Yields:
        One line a fault.
    """
    seen = set()
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader') or {}
        for _, dataset in _datasets(loader.get('dataset'), ''):
            key = repr([dataset.get(name) for name in ('data_root', 'ann_file', 'data_prefix')])
            if key in seen:  # a test set that is the validation set
                continue
            seen.add(key)
            part = dict(default_scope=cfg.get('default_scope'))
            part[f'{split}_dataloader'] = dict(dataset=dataset)
            try:
                check_data_root(part, [split])
            except DataNotFoundError as error:
                yield str(error)
                continue
            except AnnotationError as error:
                yield str(error)
            yield from _audit_one(cfg, dataset, split, say, progress, decode, subset)
        try:
            check_data_root({f'{split}_evaluator': cfg.get(f'{split}_evaluator')}, [split])
        except DataNotFoundError as error:
            yield str(error)
    try:
        check_class_folders({name: cfg[name] for name in cfg if name.endswith('_dataloader')})
    except ClassFoldersError as error:
        yield str(error)


def _audit_one(
    cfg: Mapping[str, Any],
    dataset: Mapping[str, Any],
    split: str,
    say: Callable[[str], None],
    progress: Progress,
    decode: bool,
    subset: bool,
) -> Iterator[str]:
    """Looks through the files of one data set that is there."""
    kind = str(dataset.get('type')).split('.')[-1]
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    if not isinstance(prefix, Mapping):
        prefix = dict(img_path=prefix)
    folder = os.path.join(root, prefix.get('img_path') or prefix.get('img') or '')
    ann_file = dataset.get('ann_file')
    classes = (dataset.get('metainfo') or {}).get('classes')
    count = len(classes) if classes else _CLASSES.get(kind)
    labels: list[Path] = []
    if ann_file and str(ann_file).endswith('.json'):
        where = os.path.join(root, ann_file)
        images, listed = _coco_images(where, folder)
        if images is None:
            return  # check_data_root has named the fault
    elif 'seg_map_path' in prefix:
        listed = {}
        where = folder
        images = list(_files(folder))
        labels = list(_files(os.path.join(root, prefix['seg_map_path'])))
        yield from _pairs(images, labels)
    elif kind in ('ImageNet', 'CustomDataset') and not ann_file:
        if not any(prefix.values()):
            folder = os.path.join(root, dataset.get('split') or '')
        listed = {}
        where = folder
        names = sorted(each.name for each in os.scandir(folder) if each.is_dir())
        count = count or len(names)
        if len(names) != count:
            yield f'{folder} has {len(names)} folders of classes, must have {count}'
        images = []
        for name in names:
            found = list(_files(os.path.join(folder, name)))
            images += found
            if not found:
                yield f'{os.path.join(folder, name)} holds no image'
    else:
        say(f'{split}: {kind}: only that its files and folders are there has been checked')
        return

    public = not classes and not os.path.exists(os.path.join(root, 'mini_data.json'))
    expected = EXPECTED_IMAGES.get(kind, {}).get(split) if public else None
    of = f' of {expected:,}' if expected else ''
    say(f'{split}: {kind}: {len(images):,}{of} images, {where}')
    if expected and len(images) != expected and not subset:
        yield (
            f'{where}: {len(images):,} images, the data set has {expected:,}; get the rest, or '
            'pass --subset if a part is meant'
        )
    if count is not None and split == 'train' and kind != 'CocoWholeBodyDataset':
        yield from _head_faults(cfg.get('model'), count)

    look = partial(_image_fault, listed=listed, decode=decode)
    yield from _each(look, images, f'{split} images', progress)
    if labels:
        zero = any(step.get('reduce_zero_label') for step in dataset.get('pipeline') or ())
        # A choice among ADE20K's classes is mapped by name: its label files are the whole set's.
        highest = (_CLASSES.get(kind) or count or _IGNORED_LABEL) - (0 if zero else 1)
        by_stem = {image.stem: image for image in images}
        look = partial(_label_fault, highest=highest, images=by_stem)
        yield from _each(look, labels, f'{split} labels', progress)


def _coco_images(path: str, folder: str) -> tuple[list[Path] | None, dict[Path, tuple[int, int]]]:
    """Paths of the images that a COCO file lists, and their (width, height)."""
    try:
        with open(path, 'rb') as file:
            records = json.load(file)['images']
        listed = {
            Path(folder, each['file_name']): (each['width'], each['height']) for each in records
        }
    except (ValueError, KeyError, TypeError):
        return None, {}
    return list(listed), listed


def _files(folder: str) -> Iterator[Path]:
    """Yields the images in and below a folder, by name."""
    for above, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(above, name)


def _pairs(images: Iterable[Path], labels: Iterable[Path]) -> Iterator[str]:
    """Yields images without a label map of the same name, and the other way round."""
    by_image = {each.stem: each for each in images}
    by_label = {each.stem: each for each in labels}
    for stem in sorted(by_image.keys() - by_label.keys()):
        yield f'{by_image[stem]} has no label map {stem}.png'
    for stem in sorted(by_label.keys() - by_image.keys()):
        yield f'{by_label[stem]} has no image {stem}.jpg'


def _head_faults(node: Any, count: int, place: str = 'model') -> Iterator[str]:
    """Yields the heads of a model that are made for another number of classes."""
    if isinstance(node, Mapping):
        found = node.get('num_classes')
        if isinstance(found, int) and found != count and 'rpn' not in place:
            yield (
                f'{place}.num_classes is {found}, and the training data has {count} classes: set '
                f'it to {count} in the config'
            )
        for name, value in node.items():
            yield from _head_faults(value, count, f'{place}.{name}')
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _head_faults(value, count, f'{place}.{i}')


def _image_fault(path: Path, listed: Mapping[Path, tuple[int, int]], decode: bool) -> str | None:
    """Says what is wrong with an image: missing, empty; and if opened, damaged or of other size."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if decode and size else b''
    except OSError as error:
        return f'image {path}: {error.strerror}'
    if size == 0:
        return f'image {path} is empty'
    if not decode:
        return None
    fault = image_fault(data)
    if fault is not None:
        return f'image {path} {fault}'
    with Image.open(path) as image:
        found = image.size
    # A photograph may lie on its side, and be turned by its EXIF entry.
    if path in listed and sorted(found) != sorted(listed[path]):
        wide, high = listed[path]
        return f'image {path} is {found[0]} x {found[1]}, its annotation file says {wide} x {high}'
    return None


def _label_fault(path: Path, highest: int, images: Mapping[str, Path]) -> str | None:
    """Says what is wrong with a label map: unreadable, in colours, out of range, of other size."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f'label map {path}: {error.strerror}'
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if labels is None:
        return f'label map {path} cannot be read'
    if labels.ndim != 2:
        return f'label map {path} has {labels.shape[2]} channels, must have one'
    values = np.unique(labels)
    wrong = values[(values > highest) & (values != _IGNORED_LABEL)]
    if wrong.size:
        return f'label map {path} holds {wrong[0]}, must be 0 to {highest}, or {_IGNORED_LABEL}'
    image = images.get(path.stem)
    try:
        with Image.open(image) as picture:  # type: ignore[arg-type]
            size = picture.size
    except (OSError, AttributeError):
        return None  # no image, or a damaged one: named elsewhere
    if size != labels.shape[::-1]:
        return f'label map {path} is {labels.shape[1]} x {labels.shape[0]}, its image {size}'
    return None


def _each(
    look: Callable[[Path], str | None], paths: Sequence[Path], what: str, progress: Progress
) -> Iterator[str]:
    """Looks at files, some at once, and yields their faults in the order of the files."""
    step = 4 * _WORKERS
    rest = iter(paths)
    done = 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        while batch := list(islice(rest, step)):
            yield from filter(None, pool.map(look, batch))
            done += len(batch)
            progress(what, done, len(paths))
