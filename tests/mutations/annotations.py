"""Mutations of an annotation in a COCO file: its ids, box, mask and keypoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from .case import Case, Mutation
from .coco_files import FILE_MUTATIONS, OBJECT_FILE_MUTATIONS

# The mini data set's, in the order of COCO's categories.
_CLASSES = ('person', 'sports ball', 'bottle', 'chair', 'book', 'clock', 'vase')
PARTS = ('keypoints', 'foot_kpts', 'face_kpts', 'lefthand_kpts', 'righthand_kpts')


def _fault(case: Case, name: str, value: object) -> None:
    """Gives an annotation a value that cannot be (or none, for ...)."""
    annotation = case.annotation()
    case.refuse_annotation(annotation)
    if value is ...:
        del annotation[name]
    elif callable(value):
        value(annotation)
    else:
        annotation[name] = value


def _reversed_box(annotation: dict) -> None:
    x, y, width, height = annotation['bbox']
    annotation['bbox'] = [x + width, y + height, -width, -height]


def _polygon(*points: object) -> dict:
    return dict(segmentation=[list(points)])


_FAULTS: dict[str, tuple[str, object]] = {
    'box: nan': ('bbox', [np.nan, 1, 9, 9]),
    'box: nan size': ('bbox', [1, 1, 9, np.nan]),
    'box: infinite': ('bbox', [1, 1, np.inf, 9]),
    'box: beyond float64 together': ('bbox', [1e308, 1e308, 1e308, 1e308]),
    'box: texts': ('bbox', ['1', '1', '9', '9']),
    'box: three numbers': ('bbox', [1, 1, 9]),
    'box: five numbers': ('bbox', [1, 1, 9, 9, 0]),
    'box: nested': ('bbox', [[1, 1, 9, 9]]),
    'box: null': ('bbox', None),
    'box: left out': ('bbox', ...),
    'box: null in it': ('bbox', [1, None, 9, 9]),
    'box: reversed': ('bbox', _reversed_box),
    'box: negative width': ('bbox', [30, 10, -9, 9]),
    'annotation: category null': ('category_id', None),
    'annotation: category a list': ('category_id', [1]),
    'annotation: no category': ('category_id', ...),
    'annotation: image null': ('image_id', None),
    'annotation: image a list': ('image_id', [1]),
}
_OBJECT_FAULTS: dict[str, tuple[str, object]] = {
    'area: nan': ('area', np.nan),
    'area: a text': ('area', 'large'),
    'area: left out': ('area', ...),
    'mask: left out': ('segmentation', ...),
    'mask: empty': ('segmentation', []),
    'mask: a text': ('segmentation', 'box'),
    'mask: nan in polygon': ('segmentation', [[1, 1, 9, np.nan, 9, 9]]),
    'mask: texts in polygon': ('segmentation', [['1', '1', '9', '1', '9', '9']]),
    'mask: polygon of points': ('segmentation', [[[1, 1], [9, 1], [9, 9]]]),
    'mask: polygon far away': ('segmentation', [[0, 0, 1e12, 0, 1e12, 1e12]]),
    'mask: polygon rather far away': ('segmentation', [[-1e8, 3, 20, 3, 20, 20]]),
    'mask: of another size': ('segmentation', dict(size=[9, 9], counts=[0, 81])),
    'mask: without counts': ('segmentation', dict(size=[48, 64])),
    'mask: without size': ('segmentation', dict(counts=[0, 48 * 64])),
    'mask: too few counts': ('segmentation', dict(size=[48, 64], counts=[0, 99])),
    'mask: too many counts': ('segmentation', dict(size=[48, 64], counts=[0, 9999])),
    'mask: negative counts': ('segmentation', dict(size=[48, 64], counts=[-5, 48 * 64 + 5])),
    'mask: broken counts': ('segmentation', dict(size=[48, 64], counts=[1.5, 48 * 64 - 1.5])),
    'mask: texts as counts': ('segmentation', dict(size=[48, 64], counts=['0', '9'])),
    'mask: nan counts': ('segmentation', dict(size=[48, 64], counts=[np.nan])),
    'mask: code too short': ('segmentation', dict(size=[48, 64], counts='0')),
    'mask: code too long': ('segmentation', dict(size=[48, 64], counts='PPPPPPPP`oooooO1')),
    'mask: code cut': ('segmentation', dict(size=[48, 64], counts='PP`')),
    'mask: no code': ('segmentation', dict(size=[48, 64], counts='no code, but a text')),
    'mask: code not in ascii': ('segmentation', dict(size=[48, 64], counts='\u2603')),
}
_PERSON_FAULTS: dict[str, tuple[str, object]] = {
    **{f'{part}: left out': (part, ...) for part in PARTS},
    **{f'{part}: null': (part, None) for part in PARTS},
    **{f'{part}: one number less': (part, lambda a, part=part: a[part].pop()) for part in PARTS},
    **{
        f'{part}: nan': (part, lambda a, part=part: a[part].__setitem__(3, np.nan))
        for part in PARTS
    },
    'keypoints: infinite': ('keypoints', lambda a: a['keypoints'].__setitem__(4, -np.inf)),
    'keypoints: a text': ('keypoints', lambda a: a['keypoints'].__setitem__(4, '9')),
    'keypoints: nan visibility': ('keypoints', lambda a: a['keypoints'].__setitem__(5, np.nan)),
    'keypoints: points': ('keypoints', [[1, 1, 2]] * 17),
    'num_keypoints: a text': ('num_keypoints', 'many'),
    'num_keypoints: left out': ('num_keypoints', ...),
    'segmentation: left out': ('segmentation', ...),
}


def annotation_id_twice(case: Case) -> None:
    """Two annotations of two images have one id."""
    first, second = case.annotation(), case.annotation()
    second['id'] = first['id']
    case.refuse_annotation(first)


def annotation_twice(case: Case) -> None:
    """An annotation stands twice in the file."""
    assert case.coco is not None
    annotation = case.annotation()
    case.coco['annotations'].append(dict(annotation))
    case.refuse_annotation(annotation)


def annotation_id_of_an_unlisted_image(case: Case) -> None:
    """An annotation of an image that nobody lists has the id of one that is trained on."""
    assert case.coco is not None
    annotation = case.annotation()
    case.coco['annotations'].append(dict(annotation, image_id=10**6))
    case.refuse_annotation(annotation)


def annotation_id_null(case: Case) -> None:
    """An annotation has no id."""
    case.annotation()['id'] = None
    case.refuse(case.json)


def annotation_id_a_list(case: Case) -> None:
    """An annotation's id is no number."""
    case.annotation()['id'] = [1]
    case.refuse(case.json)


def _left_out(case: Case, change: Callable[[dict], object], warning: str | None) -> None:
    """Changes an annotation so that it is sound, and nothing to train on."""
    annotation = case.annotation()
    case.drop(annotation)
    change(annotation)
    if warning is not None:
        case.warnings.append(warning)


_NO_AREA = 'a box without area inside the image'
_NO_IMAGE = 'an image that the file does not list'
_NO_CATEGORY = 'a category that the file does not list'
_LEFT_OUT: dict[str, tuple[Callable[[dict], object], str]] = {
    'box: outside': (lambda a: a.update(bbox=[70, 3, 9, 9]), _NO_AREA),
    'box: far outside': (lambda a: a.update(bbox=[-1e9, 3, 9, 9]), _NO_AREA),
    'box: no width': (lambda a: a.update(bbox=[9, 3, 0, 9]), _NO_AREA),
    'annotation: of an image that is not listed': (lambda a: a.update(image_id=10**6), _NO_IMAGE),
    'annotation: image id as a text': (
        lambda a: a.update(image_id=f'image {a["image_id"]}'),
        _NO_IMAGE,
    ),
}
_OBJECT_LEFT_OUT: dict[str, tuple[Callable[[dict], object], str]] = {
    'category: out of range': (lambda a: a.update(category_id=9999), _NO_CATEGORY),
    'category: negative': (lambda a: a.update(category_id=-1), _NO_CATEGORY),
    'category: a text': (lambda a: a.update(category_id='1'), _NO_CATEGORY),
    'area: negative': (lambda a: a.update(area=-9.0), _NO_AREA),
    'area: zero': (lambda a: a.update(area=0), _NO_AREA),
    'box: narrower than a pixel': (lambda a: a.update(bbox=[9, 3, 0.5, 9]), _NO_AREA),
}
_PERSON_LEFT_OUT: dict[str, tuple[Callable[[dict], object], None]] = {
    'crowd': (lambda a: a.update(iscrowd=1), None),
    'no keypoints': (lambda a: a.update(num_keypoints=0), None),
    'keypoints: all zero': (lambda a: a.update({part: [0] * len(a[part]) for part in PARTS}), None),
}


def short_polygon(case: Case) -> None:
    """A mask is a polygon of two points: nothing is trained on it, and a warning says so."""
    annotation = case.annotation()
    annotation['segmentation'] = [[1, 1, 9, 9]]
    case.samples[annotation['image_id']].target[annotation['id']].update(ignored=True, mask=None)
    case.warnings.append('no polygon of three points')


def crowd(case: Case) -> None:
    """An object is a crowd: a region to leave alone."""
    annotation = case.annotation()
    annotation['iscrowd'] = 1
    case.samples[annotation['image_id']].target[annotation['id']]['ignored'] = True


def box_partly_outside(case: Case) -> None:
    """A box reaches over the image's border."""
    _other_box(case, [-7, -5, 40, 30], clipped=[0, 0, 33, 25])


def box_of_the_whole_image_and_more(case: Case) -> None:
    """A box is far larger than the image."""
    _other_box(case, [-1e6, -1e6, 3e6, 3e6], clipped=[0, 0, 64, 48])


def box_of_a_pixel(case: Case) -> None:
    """A box is one pixel."""
    _other_box(case, [20, 10, 1, 1], clipped=[20, 10, 21, 11])


def _other_box(case: Case, box: list, clipped: list) -> None:
    annotation = case.annotation()
    annotation['bbox'] = box
    if case.task == 'detection':
        # mmdet cuts boxes where it moves them; its Resize does.
        target = case.samples[annotation['image_id']].target[annotation['id']]
        target['box'] = np.array(clipped, np.float32)
    else:
        sample = case.samples[annotation['id']]
        sample.image = None
        # mmpose counts to the last pixel's centre.
        sample.target['box'] = np.minimum(clipped, [63, 47, 63, 47])
        sample.target['weights'] = None


def category_that_is_not_trained(case: Case) -> None:
    """An object is of a category of the file that is no class of the data set."""
    annotation = case.annotation()
    case.drop(annotation)
    annotation['category_id'] = 77  # cell phone


def other_category(case: Case) -> None:
    """An object is of another class."""
    assert case.coco is not None
    annotation = case.annotation()
    label = int(case.rng.integers(len(_CLASSES)))
    category = next(each for each in case.coco['categories'] if each['name'] == _CLASSES[label])
    annotation['category_id'] = category['id']
    case.samples[annotation['image_id']].target[annotation['id']]['label'] = label


def without_crowd_flag(case: Case) -> None:
    """An annotation does not say whether it is a crowd."""
    del case.annotation()['iscrowd']


def keypoints_outside(case: Case) -> None:
    """Some keypoints are outside the image, near to it or far away."""
    annotation = case.annotation()
    target = case.samples[annotation['id']].target
    places = [(-3, 9), (9, -2), (67, 9), (9, 51), (-1e5, 0), (1e30, 1e30), (-1e300, 9)]
    first = 0
    for part in PARTS:
        count = len(annotation[part]) // 3
        chosen = case.rng.permutation(count)[:3]
        for i in chosen:
            place = places[case.rng.integers(len(places))]
            annotation[part][3 * i : 3 * i + 3] = [*place, 2]
            target['weights'][first + i] = 0
        first += count
    target['points'] = None
    case.warnings.append('keypoints outside the image')


def visibility_of_another_kind(case: Case) -> None:
    """Labelled keypoints have visibilities that COCO does not know."""
    annotation = case.annotation()
    for part in PARTS:
        for i in range(2, len(annotation[part]), 3):
            if annotation[part][i] > 0:
                annotation[part][i] = int(case.rng.integers(1, 99))


def negative_visibility(case: Case) -> None:
    """A person's keypoints of the body are all of visibility -1: not labelled."""
    annotation = case.annotation()
    annotation['keypoints'][2::3] = [-1] * 17
    case.samples[annotation['id']].target['weights'][:17] = 0


def whole_numbers(case: Case) -> None:
    """A box is of whole numbers, a crowd flag is false."""
    annotation = case.annotation()
    annotation['iscrowd'] = False
    annotation['category_id'] = float(annotation['category_id'])


_BOTH: dict[str, Mutation] = {
    **FILE_MUTATIONS,
    **{key: partial(_fault, name=name, value=v) for key, (name, v) in _FAULTS.items()},
    **{key: partial(_left_out, change=c, warning=w) for key, (c, w) in _LEFT_OUT.items()},
    'annotation: one id twice': annotation_id_twice,
    'annotation: twice': annotation_twice,
    'annotation: id of one of an unlisted image': annotation_id_of_an_unlisted_image,
    'annotation: id null': annotation_id_null,
    'annotation: id a list': annotation_id_a_list,
    'box: partly outside': box_partly_outside,
    'box: all of the image and more': box_of_the_whole_image_and_more,
    'box: of a pixel': box_of_a_pixel,
    'annotation: other types of numbers': whole_numbers,
    'crowd flag: left out': without_crowd_flag,
}
OBJECT_MUTATIONS: dict[str, Mutation] = {
    **_BOTH,
    **OBJECT_FILE_MUTATIONS,
    **{key: partial(_fault, name=name, value=v) for key, (name, v) in _OBJECT_FAULTS.items()},
    **{key: partial(_left_out, change=c, warning=w) for key, (c, w) in _OBJECT_LEFT_OUT.items()},
    'mask: polygon of two points': short_polygon,
    'crowd': crowd,
    'category: not trained': category_that_is_not_trained,
    'category: another': other_category,
}
PERSON_MUTATIONS: dict[str, Mutation] = {
    **_BOTH,
    **{key: partial(_fault, name=name, value=v) for key, (name, v) in _PERSON_FAULTS.items()},
    **{key: partial(_left_out, change=c, warning=w) for key, (c, w) in _PERSON_LEFT_OUT.items()},
    'keypoints: outside': keypoints_outside,
    'visibility: of another kind': visibility_of_another_kind,
    'visibility: negative': negative_visibility,
}
