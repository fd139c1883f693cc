"""Whether a COCO file of detection or whole-body pose says what a run can use.

On a faulty one OpenMMLab's data sets fail with a bare KeyError, after the test, or not at all: a
box of nan makes an AP of 50. `check_annotations` looks before anything is built and says which
annotation is at fault, and how to mend it. It reads the file once more than the libraries do, which
takes as long as theirs.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.registry import DATASETS

from clustr_mm.datasets.masks import encloses, finite, mask_fault

# x, y, visible of COCO-WholeBody's 133 keypoints.
_KEYPOINTS = dict(
    keypoints=3 * 17, foot_kpts=3 * 6, face_kpts=3 * 68, lefthand_kpts=3 * 21, righthand_kpts=3 * 21
)
_COMMON = dict(id=0, image_id=0, category_id=0, bbox=4)
# What a data set of a type reads of every annotation, and how many numbers each is (0: any value).
_FIELDS: dict[str, dict[str, int]] = {
    'mmdet.CocoDataset': dict(_COMMON, area=1),
    'mmpose.CocoWholeBodyDataset': dict(_COMMON, segmentation=0, num_keypoints=1, **_KEYPOINTS),
}
# What the evaluation reads besides.
_FIELDS_EVALUATED = {
    'mmdet.CocoDataset': dict(iscrowd=0),
    'mmpose.CocoWholeBodyDataset': dict(area=1),
}
# Why the libraries pass over an annotation, or a part of it.
_NO_IMAGE = 'an image that the file does not list'
_NO_CATEGORY = 'a category that the file does not list'
_NO_AREA = 'a box without area inside the image'
_NO_POLYGON = 'no polygon of three points'
_OUTSIDE = 'keypoints outside the image'
_CROWD, _NO_KEYPOINTS = 'iscrowd set', 'no keypoints'
_OTHER_CATEGORY = 'a category that is not among the classes'
# Those that are mistakes, if harmless ones, and what comes of them in training and in a test.
_WARNED = {
    _NO_IMAGE: ('are left out', 'are left out'),
    _NO_CATEGORY: ('are left out', 'are left out'),
    _NO_AREA: ('are not trained on', 'count as missed'),
    _NO_POLYGON: ('are not trained on', 'count as missed'),
    _OUTSIDE: ('are trained on without them', 'are measured with them'),
}


class AnnotationError(ValueError):
    """An annotation file is damaged, or says what no run can use."""


def check_annotations(dataset: Mapping[str, Any], scope: str | None, evaluated: bool) -> None:
    """Check what is in the annotation file of a data set in COCO's format.

    Args:
        dataset: config of the data set; of another kind it is passed over.
        scope: the library that a type without scope is of.
        evaluated: whether the data set is tested on, or trained on.

    Raises:
        AnnotationError: one sentence with the file, the annotation and the mend.
    """
    kind, path = dataset.get('type', ''), dataset.get('ann_file')
    if not isinstance(kind, str) or not path:
        return
    kind = kind if '.' in kind else f'{scope}.{kind}'
    path = join_path(dataset.get('data_root') or '', path)
    if kind not in _FIELDS or is_remote(path):
        return
    content = _read(path, dict)
    persons = 'keypoints' in _FIELDS[kind]
    sizes = _sizes(_records(content, 'images', path), path, persons)
    boxes = dataset.get('bbox_file')
    if boxes and not is_remote(boxes):
        _check_boxes(boxes, path, sizes)
    categories = _records(content, 'categories', path)
    _check_categories(categories, path)
    use = _Use(
        fields={**_FIELDS[kind], **(_FIELDS_EVALUATED[kind] if evaluated else {})},
        persons=persons,
        masks=any(step.get('with_mask') for step in _steps(dataset.get('pipeline'))),
        categories=None if persons else _known_categories(dataset, scope, categories, path),
        listed={each['id'] for each in categories},
        evaluated=evaluated,
    )
    annotations = _records(content, 'annotations', path)
    passed_over = _check_annotations(annotations, sizes, use, path)
    for reason, consequences in _WARNED.items():
        if passed_over[reason]:
            print_log(
                f'{path}: {len(passed_over[reason])} of {len(annotations)} annotations have '
                f'{reason} and {consequences[evaluated]} '
                f'(the first: annotation {passed_over[reason][0]})',
                logger='current',
                level=30,  # WARNING
            )
    # A detector is tested on images without objects, too; a top-down pose model has then no input.
    needed = not evaluated or (persons and not boxes)
    if needed and not passed_over['']:
        reasons = [f'{len(ids)} have {why}' for why, ids in passed_over.items() if ids]
        raise AnnotationError(
            f'{path}: no annotation to {"test" if evaluated else "train"} on among '
            f'{len(annotations)} of {len(sizes)} images'
            + (f': {", ".join(reasons)}' if reasons else '')
        )


def image_sizes(path: str) -> dict[Any, tuple[int, int]]:
    """Read the images' sizes from a COCO file, without the annotations.

    Args:
        path: path of the file.

    Returns:
        Height and width in pixels by image id.
    """
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # The list ends at the first bracket unless a record holds one; then all must be read.
        start = data.find(b'[', data.find(b'"images"'))
        try:
            records = json.loads(data[start : data.find(b']', start) + 1])
            return {each['id']: (each['height'], each['width']) for each in records}
        except (ValueError, KeyError, TypeError):
            records = json.loads(data[:])['images']
    return {each['id']: (each['height'], each['width']) for each in records}


def class_names(dataset: Mapping[str, Any], scope: str | None) -> Sequence[str] | None:
    """Look up a data set's classes without building it.

    Args:
        dataset: config of the data set.
        scope: the library that a type without scope is of.

    Returns:
        The names in the order of their labels; None where only the built data set knows them.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type', '')
        if isinstance(kind, str):
            kind = DATASETS.get(kind if '.' in kind else f'{scope}.{kind}')
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    return classes if isinstance(classes, list | tuple) else None


def join_path(root: str, path: str) -> str:
    """Join a data root with a path of the data set, which may be a whole one."""
    return path if is_remote(path) else os.path.join(root, path)


def is_remote(path: str) -> bool:
    """Whether a path has a scheme (``s3://``)."""
    return '://' in path


class _Use(NamedTuple):
    """What a run reads of an annotation file."""

    fields: Mapping[str, int]
    persons: bool  # with keypoints; else objects
    masks: bool
    categories: set | None  # ids of those that are classes; None: all
    listed: set  # ids of all categories
    evaluated: bool


def _check_annotations(
    annotations: Sequence[Mapping[str, Any]], sizes: Mapping, use: _Use, path: str
) -> Mapping[str, list]:
    """Check every annotation; return the ids by the reason that they are passed over for."""
    passed_over: dict[str, list] = defaultdict(list)
    seen = set()
    for annotation in annotations:
        number, image = annotation.get('id'), annotation.get('image_id')
        # pycocotools keeps one annotation of an id, also where nobody reads the other's image.
        fault = _id_fault(annotation) or ('has the id of another one' if number in seen else None)
        if fault is None and image not in sizes:
            seen.add(number)
            passed_over[_NO_IMAGE].append(number)
            continue  # nobody reads it
        fault = fault or _field_fault(annotation, use.fields)
        reason = ''
        if fault is None:
            reason = _why_passed_over(annotation, sizes[image], use)
            if use.masks and reason not in (_OTHER_CATEGORY, _NO_CATEGORY):
                fault = mask_fault(annotation.get('segmentation'), sizes[image], use.evaluated)
        if fault is not None:
            raise AnnotationError(
                f'{path}: annotation {number} (image {image}) {fault}; mend it or take it out'
            )
        seen.add(number)
        passed_over[reason].append(number)
        if use.persons and not reason and _reaches_outside(annotation, sizes[image]):
            passed_over[_OUTSIDE].append(number)
    return passed_over


def _read(path: str, kind: type) -> Any:
    """Parse a JSON file that holds a dict or a list."""
    try:
        with open(path, encoding='utf-8') as file:  # as pycocotools does: no byte order mark
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f'{path} is no whole JSON file ({error}): download or write it again'
        ) from error
    if not isinstance(content, kind):
        wanted = 'a dict of images, annotations and categories' if kind is dict else 'a list'
        raise AnnotationError(f'{path} holds a {type(content).__name__}, must be {wanted}')
    return content


def _records(content: Mapping[str, Any], name: str, path: str) -> list[Mapping[str, Any]]:
    """A list of a COCO file, empty where the file has none."""
    records = content.get(name, [])
    if not isinstance(records, list):
        raise AnnotationError(f'{path}: {name!r} is a {type(records).__name__}, must be a list')
    for place, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise AnnotationError(
                f'{path}: {name!r} has a {type(record).__name__} at place {place} (counted from '
                '0), must have dicts only'
            )
    return records


def _sizes(
    images: Sequence[Mapping[str, Any]], path: str, persons: bool
) -> dict[Any, tuple[int, int]]:
    """Height and width of the images by id."""
    if not images:
        raise AnnotationError(f'{path} lists no images')
    sizes: dict[Any, tuple[int, int]] = {}
    for image in images:
        which = image.get('file_name', image.get('id'))
        for name in ('id', 'file_name', 'height', 'width'):
            if image.get(name) is None:
                raise AnnotationError(f'{path}: image {which} has no {name!r}; write it there')
        number, size = image['id'], (image['height'], image['width'])
        fault = None
        if not _is_id(number) or (persons and isinstance(number, str)):  # mmpose counts with it
            fault = f"has 'id' {number!r}, must be a whole number"
        elif not isinstance(image['file_name'], str):
            fault = "has no text as 'file_name'"
        elif not all(isinstance(side, int) and side > 0 for side in size):
            fault = f'has height and width {size}, must be whole numbers of pixels from 1'
        elif number in sizes:
            fault = f'has the id {number} of another one: each would get the annotations of both'
        if fault is not None:
            raise AnnotationError(f'{path}: image {which} {fault}; mend it or take it out')
        sizes[number] = size
    return sizes


def _is_id(value: Any) -> bool:
    """Whether a value can be an id: a whole number or a text."""
    return isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())


def _id_fault(annotation: Mapping[str, Any]) -> str | None:
    """Say which id of an annotation is missing or cannot be one: the libraries sort by them."""
    for name in ('id', 'image_id', 'category_id'):
        value = annotation.get(name)
        if value is None:
            return f'has no {name!r}'
        if not _is_id(value):
            return f'has {name!r} {value!r}, must be a whole number'
    return None


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the transforms of a pipeline, and those inside them."""
    if isinstance(pipeline, Mapping):
        yield pipeline
        pipeline = pipeline.values()
    elif not isinstance(pipeline, list | tuple):
        return
    for each in pipeline:
        yield from _steps(each)


def _check_categories(categories: Sequence[Mapping[str, Any]], path: str) -> None:
    """Check that each category has an id and a name of its own."""
    if not categories:
        raise AnnotationError(f"{path} has no 'categories'; write id and name of each there")
    for name in ('id', 'name'):
        seen = set()
        for category in categories:
            value = category.get(name)
            if not _is_id(value) or value in seen:
                fault = f'the {name} of another one' if _is_id(value) else f'no {name!r}'
                raise AnnotationError(
                    f'{path}: category {dict(category)} has {fault}; give each its own'
                )
            seen.add(value)


def _known_categories(
    dataset: Mapping[str, Any], scope: str | None, categories: Sequence[Mapping], path: str
) -> set | None:
    """Ids of the categories that are a class of the data set; None where all may be."""
    classes = class_names(dataset, scope)
    if classes is None:
        return None
    found = {each['id']: each['name'] for each in categories if each['name'] in classes}
    if not found:
        named = ', '.join(str(each['name']) for each in categories)
        raise AnnotationError(
            f'{path}: no category ({named:.200}) is a class of the data set '
            f'({", ".join(classes):.200}); name them in '
            "dataset.metainfo=dict(classes=(...)), and their number in the model's heads"
        )
    # mmdet counts through the file's categories, and takes the number for the class of that place.
    for category, name in zip(found.values(), classes, strict=False):
        if category != name:
            raise AnnotationError(
                f'{path} has category {category!r} where the classes have {name!r}, and labels are '
                "counted in the file's order: list the categories "
                f'there as dataset.metainfo.classes does ({", ".join(classes):.200})'
            )
    return set(found)


def _field_fault(annotation: Mapping[str, Any], fields: Mapping[str, int]) -> str | None:
    """Say which field is missing or does not hold the numbers that it must."""
    for name, count in fields.items():
        value = annotation.get(name)
        if value is None:
            return f'has no {name!r}'
        if count > 1 and not (isinstance(value, list) and len(value) == count):
            held = len(value) if isinstance(value, list) else 'no list of'
            return f'has {held} numbers in {name!r}, must be {count}'
        if count and not finite(value if count > 1 else [value]):
            return f'has a nan, an inf or a text in {name!r}'
    if min(annotation['bbox'][2:]) < 0:
        return f"has a negative size in 'bbox' {annotation['bbox']}, which is x, y, width, height"
    return None


def _why_passed_over(annotation: Mapping[str, Any], size: tuple[int, int], use: _Use) -> str:
    """Say why nothing is learnt from an annotation; nothing where it is."""
    x, y, width, height = annotation['bbox']
    last = 1 if use.persons else 0  # mmpose counts to the last pixel's centre, mmdet to its border
    wide = min(x + width, size[1] - last) - max(x, 0)
    high = min(y + height, size[0] - last) - max(y, 0)
    if annotation.get('iscrowd'):
        return _CROWD
    if use.categories is not None and annotation['category_id'] not in use.categories:
        return _OTHER_CATEGORY if annotation['category_id'] in use.listed else _NO_CATEGORY
    if wide <= 0 or high <= 0:
        return _NO_AREA
    if use.persons:
        labelled = annotation['num_keypoints'] and any(
            max(annotation[part]) > 0 for part in _KEYPOINTS
        )
        return '' if labelled else _NO_KEYPOINTS
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return _NO_AREA
    mask = annotation.get('segmentation')
    if use.masks and isinstance(mask, list) and not any(encloses(polygon) for polygon in mask):
        return _NO_POLYGON
    return ''


def _reaches_outside(person: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether a person has a keypoint outside the image (unlabelled ones are at 0, 0)."""
    return any(
        min(person[part][axis::3]) < 0 or max(person[part][axis::3]) > size[1 - axis]
        for part in _KEYPOINTS
        for axis in (0, 1)
    )


def _check_boxes(path: str, ann_file: str, sizes: Mapping) -> None:
    """Check a detector's boxes for persons."""
    boxes = _read(path, list)
    if not boxes:
        raise AnnotationError(f'{path} holds no boxes; bbox_file=None takes the annotated ones')
    for place, box in enumerate(boxes):
        if not isinstance(box, Mapping):
            fault: str | None = f'is a {type(box).__name__}, must be a dict'
        elif not _is_id(box.get('image_id', 0)):
            fault = f"has 'image_id' {box['image_id']!r}, must be a whole number"
        else:
            fault = _field_fault(box, dict(image_id=0, category_id=0, bbox=4, score=1))
        if fault is None and box['image_id'] not in sizes:
            fault = f'is of image {box["image_id"]}, which {ann_file} does not list'
        if fault is not None:
            raise AnnotationError(
                f'{path}: box {place} (counted from 0) {fault}; mend it, or take the annotated '
                'boxes with bbox_file=None'
            )
