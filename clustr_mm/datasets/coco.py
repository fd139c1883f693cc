"""What a file of COCO's format says that no run can use, or that the libraries pass over.

The data sets' own classes have read the file before, so that what they ask for is there: here is
looked for what they let through. A box of NaN makes an AP of 50, a polygon of NaN takes the
machine's memory, and categories in another order than the classes change every label.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

_PARTS = ('keypoints', 'foot_kpts', 'face_kpts', 'lefthand_kpts', 'righthand_kpts')
_FARTHEST = 100_000  # pixels: pycocotools walks along a polygon in fifths of one


def coco_faults(
    content: Mapping[str, Any], dataset: Any, crowds: bool, masks: bool
) -> Iterator[tuple[bool, str]]:
    """Yield whether a line is a fault (else it may be meant so), and the line.

    The data set's class has read the content before; `crowds` says whether its metric reads
    'iscrowd', and `masks` whether its pipeline reads masks.
    """
    for name in ('images', 'annotations'):
        counts = Counter(each['id'] for each in content[name] if 'id' in each)
        if twice := [key for key, count in counts.items() if count > 1]:
            yield True, f'{len(twice)} ids of {name} are there twice, the first {twice[0]}'
    categories = {each['id']: each.get('name') for each in content['categories']}
    chosen = set(getattr(dataset, 'cat_ids', None) or categories)
    yield from _category_faults(categories, dataset)
    sizes = {each['id']: (each.get('height'), each.get('width')) for each in content['images']}
    passed_over: Counter[str] = Counter()
    lengths: dict[str, int] = {}
    reaching = 0
    for annotation in content['annotations']:
        size, category = sizes.get(annotation.get('image_id')), annotation.get('category_id')
        if size is None:
            passed_over['an image that the file does not list'] += 1
            continue
        if category not in chosen:  # which nobody reads
            passed_over['a category that the file does not list'] += category not in categories
            continue
        fault = _number_fault(annotation, lengths)
        if fault is None and crowds and 'iscrowd' not in annotation:
            fault = "has no 'iscrowd', which the metric reads"
        if fault is None and masks:
            fault = _mask_fault(annotation.get('segmentation'), size)
        if fault is not None:
            where = f'annotation {annotation.get("id")} (image {annotation["image_id"]})'
            yield True, f'{where} {fault}'
            continue
        x, y, width, height = annotation.get('bbox', (0, 0, 1, 1))
        if None not in size:
            reaching += x + width > size[1] + 1 or y + height > size[0] + 1
            if min(x + width, size[1]) <= max(x, 0) or min(y + height, size[0]) <= max(y, 0):
                passed_over['a box without area inside the image'] += 1
    total = len(content['annotations'])
    for reason, count in (+passed_over).items():
        yield False, f'{count:,} of {total:,} annotations have {reason} and are passed over'
    if reaching > total / 10:
        line = f'{reaching:,} of {total:,} boxes reach out of their image'
        yield False, f'{line}: are they x, y, width, height?'


def _mask_fault(mask: Any, size: tuple[int, int]) -> str | None:
    """Say why a 'segmentation' cannot be drawn into an image of a height and width in pixels."""
    from pycocotools import mask as coder

    if isinstance(mask, Mapping):
        counts = mask.get('counts')
        if list(mask.get('size') or ()) != list(size):
            return f'has a mask of size {mask.get("size")}, its image {list(size)} (height, width)'
        if isinstance(counts, list):  # the coder leaves a rest as it was in memory
            sound = _finite(counts) and min(counts, default=0) >= 0
            if not sound or sum(counts) != size[0] * size[1]:
                return f"has 'counts' that are not run lengths of {size[0] * size[1]} pixels"
            return None
        try:
            coder.decode(mask)
        except Exception as error:  # of whatever type
            return f'has a mask that cannot be decoded ({error})'
        return None
    if not isinstance(mask, list) or not mask:
        return "has no 'segmentation'"
    for polygon in mask:
        if not isinstance(polygon, list) or not _finite(polygon):
            return "has a NaN, an inf or something else than numbers in 'segmentation'"
        if max(map(abs, polygon), default=0) > _FARTHEST:
            return f"has a point more than {_FARTHEST:,} pixels away in 'segmentation'"
    return None


def _category_faults(categories: Mapping[Any, Any], dataset: Any) -> Iterator[tuple[bool, str]]:
    """Compare the categories with the classes: mmdet counts labels in the file's order."""
    classes = dataset.metainfo.get('classes')
    chosen = getattr(dataset, 'cat_ids', None)
    if not classes or chosen is None:
        return
    names = [categories.get(each) for each in chosen]
    missing = [name for name in classes if name not in names]
    if missing:
        yield True, f'no category is called {", ".join(missing):.200}, as the classes are'
    elif names != list(classes):
        line = f'the categories {", ".join(map(str, names)):.200} stand in another order than '
        line += "metainfo.classes, and labels are counted in the file's: list the classes in that"
        yield True, line


def _number_fault(annotation: Mapping[str, Any], lengths: dict[str, int]) -> str | None:
    """Say which field does not hold the numbers that it must; `lengths` are those of the first."""
    box = annotation.get('bbox', [0, 0, 1, 1])
    if not isinstance(box, list) or len(box) != 4 or not _finite(box):
        return f"has 'bbox' {box}, must be four numbers"
    if min(box[2:]) < 0:
        return f"has a negative size in 'bbox' {box}, which is x, y, width, height"
    for name in ('area', *_PARTS):
        values = annotation.get(name, 0)
        if not _finite(values if isinstance(values, list) else [values]):
            return f'has a NaN, an inf or something else than numbers in {name!r}'
        if isinstance(values, list) and len(values) != lengths.setdefault(name, len(values)):
            return f'has {len(values)} numbers in {name!r}, those before it {lengths[name]}'
    return None


def _finite(values: list) -> bool:
    """Whether all are numbers, and none NaN, infinite or beyond a float."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False
