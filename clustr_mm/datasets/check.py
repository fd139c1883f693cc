"""Whether the data sets are where, and what, a config says they are.

OpenMMLab's data sets fail late and elsewhere when a folder is missing (an empty list of images, an
assertion in pycocotools), and on a faulty COCO file with a bare KeyError, after the test, or not at
all: a box of nan makes an AP of 50. `check_data_root` looks before anything is built and says which
path is missing, what the data set's tree must look like, which annotation is at fault, and how to
mend it. It reads a COCO file once more than the libraries do, which takes as long as theirs.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.registry import DATASETS

SPLITS = ('train', 'val', 'test')

# The tree that a data set of a type is kept in, below its data_root.
EXPECTED_TREES: dict[str, str] = {
    'ADE20KDataset': (
        'ADEChallengeData2016/{images/{training,validation}/*.jpg,'
        'annotations/{training,validation}/*.png}'
    ),
    'CocoDataset': 'coco/{annotations/instances_{train,val}2017.json,{train,val}2017/*.jpg}',
    'CocoWholeBodyDataset': (
        'coco/{annotations/coco_wholebody_{train,val}_v1.0.json,{train,val}2017/*.jpg}'
    ),
    'ImageNet': 'imagenet/{train,val}/<one folder a class>/*.JPEG',
}
EXPECTED_TREES['CustomDataset'] = EXPECTED_TREES['ImageNet']

_LAYOUTS = {
    'ADE20KDataset': 'ade20k',
    'CocoDataset': 'coco',
    'CocoWholeBodyDataset': 'coco_wholebody',
    'ImageNet': 'imagenet',
    'CustomDataset': 'imagenet',
}

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
# Why the libraries pass over an annotation. The first two are mistakes, if harmless ones.
_NO_AREA = 'a box without area inside the image'
_NO_POLYGON = 'no polygon of three points'
_CROWD, _NO_KEYPOINTS = 'iscrowd set', 'no keypoints'
_OTHER_CATEGORY = 'a category that is not among the classes'


class DataNotFoundError(ValueError):
    """A folder or file that a config names is not there."""


class AnnotationError(ValueError):
    """An annotation file is damaged, or says what no run can use."""


def check_data_root(cfg: Mapping[str, Any], splits: Sequence[str] = SPLITS) -> None:
    """Check that every data set of a config is where the config says.

    Looks at the data sets of ``{train,val,test}_dataloader``, through wrappers (`dataset`,
    `datasets`), and at whole paths besides them: `bbox_file`, and `ann_file` of the evaluators.
    Then reads the COCO files of detection and whole-body pose; a warning says which of their
    annotations the run passes over by mistake. Paths with a scheme (``s3://``) are passed over.

    Args:
        cfg: an mmengine Config, or a dict of its form.
        splits: which of 'train', 'val' and 'test' the run will use.

    Raises:
        DataNotFoundError: one sentence with the missing path, who names it, the expected tree and
            the mend.
        AnnotationError: one sentence with the file, the annotation and the mend.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            for place, dataset in _datasets(loader.get('dataset'), f'{split}_dataloader.dataset'):
                _check_dataset(dataset, place)
                _check_content(dataset, cfg.get('default_scope'), evaluated=split != 'train')
        evaluators = cfg.get(f'{split}_evaluator')
        if isinstance(evaluators, Mapping):
            evaluators = [evaluators]
        for evaluator in evaluators or ():
            path = evaluator.get('ann_file')
            if path and not _exists(path):
                raise DataNotFoundError(
                    f'annotation file {path} ({split}_evaluator.ann_file) not found: pass '
                    f'--data-root DIR, or --cfg-options {split}_evaluator.ann_file=FILE'
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


def _datasets(node: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where in the config, config) of each data set that reads files."""
    if not isinstance(node, Mapping):
        return
    if 'datasets' in node:  # ConcatDataset, CombinedDataset
        for i, inner in enumerate(node['datasets']):
            yield from _datasets(inner, f'{place}.datasets.{i}')
    elif 'dataset' in node:  # RepeatDataset, ClassBalancedDataset, MultiImageMixDataset, ...
        yield from _datasets(node['dataset'], f'{place}.dataset')
    else:
        yield place, node


def _check_dataset(dataset: Mapping[str, Any], place: str) -> None:
    kind = dataset.get('type', '')
    kind = kind.split('.')[-1] if isinstance(kind, str) else kind.__name__
    root = dataset.get('data_root') or ''

    def fail(what: str, path: str) -> None:
        tree = EXPECTED_TREES.get(kind)
        layout = _LAYOUTS.get(kind)
        expected = f'; expected tree: {tree}' if tree else ''
        make = f', or run `python tools/make_mini_data.py DIR --layout {layout}`' if layout else ''
        raise DataNotFoundError(
            f'{what}: {os.path.abspath(path)} ({place}, {kind}){expected}; pass --data-root DIR '
            f'to say where it is{make}'
        )

    # The data set's own joining: data_root before whatever is not absolute.
    if root and not _exists(root):
        fail('data folder not found', root)
    ann_file = dataset.get('ann_file')
    if ann_file and not _exists(path := _join(root, ann_file)):
        fail('annotation file not found', path)
    prefixes = dataset.get('data_prefix') or {}
    if not isinstance(prefixes, Mapping):  # mmpretrain allows a plain string
        prefixes = {'img_path': prefixes}
    if kind == 'ImageNet' and dataset.get('split') and not any(prefixes.values()):
        prefixes = {'img_path': dataset['split']}
    for prefix in prefixes.values():
        path = _join(root, prefix or '')
        if not path or _is_remote(path):
            continue
        if not os.path.isdir(path):
            fail('data folder not found', path)
        if not any(os.scandir(path)):
            fail('data folder is empty', path)
    bbox_file = dataset.get('bbox_file')
    if bbox_file and not _exists(bbox_file):
        raise DataNotFoundError(
            f'person boxes not found: {os.path.abspath(bbox_file)} ({place}.bbox_file); to take '
            f'the annotated boxes instead, pass --cfg-options {place}.bbox_file=None'
        )


def _join(root: str, path: str) -> str:
    return path if _is_remote(path) else os.path.join(root, path)


def _is_remote(path: str) -> bool:
    return '://' in path


def _exists(path: str) -> bool:
    return _is_remote(path) or os.path.exists(path)


class _Use(NamedTuple):
    """What a run reads of an annotation file."""

    fields: Mapping[str, int]
    persons: bool  # with keypoints; else objects
    masks: bool
    categories: set | None  # ids of those that are classes; None: all
    evaluated: bool


def _check_content(dataset: Mapping[str, Any], scope: str | None, evaluated: bool) -> None:
    """Check what is in the annotation file of a data set in COCO's format."""
    kind, path = dataset.get('type', ''), dataset.get('ann_file')
    if not isinstance(kind, str) or not path:
        return
    kind = kind if '.' in kind else f'{scope}.{kind}'
    path = _join(dataset.get('data_root') or '', path)
    if kind not in _FIELDS or _is_remote(path):
        return
    content = _read(path, dict)
    sizes = _sizes(content.get('images'), path)
    boxes = dataset.get('bbox_file')
    if boxes and not _is_remote(boxes):
        _check_boxes(boxes, path, sizes)
    persons = 'keypoints' in _FIELDS[kind]
    categories = content.get('categories') or []
    use = _Use(
        fields={**_FIELDS[kind], **(_FIELDS_EVALUATED[kind] if evaluated else {})},
        persons=persons,
        masks=any(step.get('with_mask') for step in _steps(dataset.get('pipeline'))),
        categories=None if persons else _known_categories(dataset, kind, categories, path),
        evaluated=evaluated,
    )
    annotations = content.get('annotations') or []
    passed_over = _check_annotations(annotations, sizes, use, path)
    for reason in (_NO_AREA, _NO_POLYGON):
        if passed_over[reason]:
            what = 'count as missed' if evaluated else 'are not trained on'
            print_log(
                f'{path}: {len(passed_over[reason])} of {len(annotations)} annotations have '
                f'{reason} and {what} (the first: annotation {passed_over[reason][0]})',
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


def _check_annotations(
    annotations: Sequence[Mapping[str, Any]], sizes: Mapping, use: _Use, path: str
) -> Mapping[str, list]:
    """Check every annotation; return the ids by the reason that they are passed over for."""
    passed_over: dict[str, list] = defaultdict(list)
    seen = set()
    for annotation in annotations:
        number, image = annotation.get('id'), annotation.get('image_id')
        if image is not None and image not in sizes:
            continue  # of an image that is not listed: nobody reads it
        fault = 'has the id of another one' if number in seen else None
        fault = fault or _field_fault(annotation, use.fields)
        reason = ''
        if fault is None:
            reason = _why_passed_over(annotation, sizes[image], use)
            if use.masks and reason != _OTHER_CATEGORY:
                fault = _mask_fault(annotation.get('segmentation'), sizes[image], use.evaluated)
        if fault is not None:
            raise AnnotationError(
                f'{path}: annotation {number} (image {image}) {fault}; mend it or take it out'
            )
        seen.add(number)
        passed_over[reason].append(number)
    return passed_over


def _read(path: str, kind: type) -> Any:
    """Parse a JSON file that holds a dict or a list."""
    try:
        with open(path, 'rb') as file:
            content = json.load(file)
    except ValueError as error:
        raise AnnotationError(
            f'{path} is no whole JSON file ({error}): download or write it again'
        ) from error
    if not isinstance(content, kind):
        wanted = 'a dict of images, annotations and categories' if kind is dict else 'a list'
        raise AnnotationError(f'{path} holds a {type(content).__name__}, must be {wanted}')
    return content


def _sizes(images: Any, path: str) -> dict[Any, tuple[int, int]]:
    """Height and width of the images by id."""
    if not images:
        raise AnnotationError(f'{path} lists no images')
    for image in images:
        for name in ('id', 'file_name', 'height', 'width'):
            if image.get(name) is None:
                which = image.get('file_name', image.get('id'))
                raise AnnotationError(f'{path}: image {which} has no {name!r}; write it there')
    return {image['id']: (image['height'], image['width']) for image in images}


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the transforms of a pipeline, and those inside them."""
    if isinstance(pipeline, Mapping):
        yield pipeline
        pipeline = pipeline.values()
    elif not isinstance(pipeline, list | tuple):
        return
    for each in pipeline:
        yield from _steps(each)


def _known_categories(
    dataset: Mapping[str, Any], kind: str, categories: Sequence[Mapping], path: str
) -> set | None:
    """Ids of the categories that are a class of the data set; None where all may be."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = getattr(DATASETS.get(kind), 'METAINFO', {}).get('classes')
    if not isinstance(classes, list | tuple):
        return None
    known = {each['id'] for each in categories if each['name'] in classes}
    if not known:
        named = ', '.join(str(each['name']) for each in categories) or 'none'
        raise AnnotationError(
            f'{path}: no category ({named:.200}) is a class of the data set '
            f'({", ".join(classes):.200}); name them in '
            "dataset.metainfo=dict(classes=(...)), and their number in the model's heads"
        )
    return known


def _field_fault(annotation: Mapping[str, Any], fields: Mapping[str, int]) -> str | None:
    """Say which field is missing or does not hold the numbers that it must."""
    for name, count in fields.items():
        value = annotation.get(name)
        if value is None:
            return f'has no {name!r}'
        if count > 1 and not (isinstance(value, list) and len(value) == count):
            held = len(value) if isinstance(value, list) else 'no list of'
            return f'has {held} numbers in {name!r}, must be {count}'
        if count and not _finite(value if count > 1 else [value]):
            return f'has a nan, an inf or a text in {name!r}'
    if min(annotation['bbox'][2:]) < 0:
        return f"has a negative size in 'bbox' {annotation['bbox']}, which is x, y, width, height"
    return None


def _mask_fault(mask: Any, size: tuple[int, int], evaluated: bool) -> str | None:
    """Say why a mask cannot be drawn; pycocotools crashes on it or takes the machine's memory."""
    if isinstance(mask, Mapping):
        if list(mask.get('size') or ()) != list(size):
            return f'has a mask of size {mask.get("size")}, its image {list(size)} (height, width)'
        counts = mask.get('counts')
        if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
            return f"has a mask of {sum(counts)} pixels in 'counts', its image {size[0] * size[1]}"
        return None if counts else "has a mask without 'counts'"
    if not isinstance(mask, list) or not mask:
        return "has no 'segmentation'"
    for polygon in mask:
        if not isinstance(polygon, list) or not _finite(polygon):
            return "has a nan, an inf or a text in 'segmentation'"
        if evaluated and not _encloses(polygon):
            return f"has {len(polygon)} numbers in a polygon of 'segmentation', must be 6, 8, ..."
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
        return _OTHER_CATEGORY
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
    if use.masks and isinstance(mask, list) and not any(_encloses(polygon) for polygon in mask):
        return _NO_POLYGON
    return ''


def _encloses(polygon: Sequence[float]) -> bool:
    """Whether x, y, ... are three points or more."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _check_boxes(path: str, ann_file: str, sizes: Mapping) -> None:
    """Check a detector's boxes for persons."""
    boxes = _read(path, list)
    if not boxes:
        raise AnnotationError(f'{path} holds no boxes; bbox_file=None takes the annotated ones')
    for place, box in enumerate(boxes):
        fault = _field_fault(box, dict(image_id=0, category_id=0, bbox=4, score=1))
        if fault is None and box['image_id'] not in sizes:
            fault = f'is of image {box["image_id"]}, which {ann_file} does not list'
        if fault is not None:
            raise AnnotationError(
                f'{path}: box {place} (counted from 0) {fault}; mend it, or take the annotated '
                'boxes with bbox_file=None'
            )


def _finite(values: Sequence) -> bool:
    """Whether all are numbers, and none nan or infinite."""
    try:
        return math.isfinite(sum(values))
    except TypeError:
        return False
