"""A faulty COCO file is said before anything is built, with the annotation at fault."""

import copy
import json
import logging
import math

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from clustr_mm.datasets import check_data_root
from clustr_mm.datasets.annotations import AnnotationError, image_sizes

# What every picture below is in size, and an annotation of it that nothing is wrong with.
HEIGHT, WIDTH = 40, 60
BOX = dict(id=7, image_id=1, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0)
THING = dict(BOX, segmentation=[[5, 5, 25, 5, 25, 25]])
PARTS = dict(keypoints=17, foot_kpts=6, face_kpts=68, lefthand_kpts=21, righthand_kpts=21)
PERSON = dict(THING, num_keypoints=17, **{name: [9, 9, 2] * count for name, count in PARTS.items()})
LOAD = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)


def content(*annotations):
    image = dict(id=1, file_name='a.jpg', height=HEIGHT, width=WIDTH)
    category = dict(id=1, name='person')
    return dict(images=[image], annotations=list(annotations), categories=[category])


@pytest.fixture
def check(tmp_path):
    """Checks a COCO file's content as detection or pose use it; returns warnings or the error."""

    def run(written, persons=False, split='train', **more):
        path = tmp_path / 'a.json'
        text = written if isinstance(written, str | bytes) else json.dumps(written)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / 'images').mkdir(exist_ok=True)
        (tmp_path / 'images' / 'a.jpg').touch()
        kind = 'mmpose.CocoWholeBodyDataset' if persons else 'mmdet.CocoDataset'
        dataset = dict(
            type=kind, data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img='images'),
            metainfo=dict(classes=('person',)), pipeline=[dict(type='X'), LOAD],
        )  # fmt: skip
        dataset.update(more)
        records = []
        logger = MMLogger.get_instance(f'check_{tmp_path.name}', logger_name='check')
        handler = logging.Handler()
        handler.emit = records.append
        logger.addHandler(handler)
        try:
            check_data_root(Config({f'{split}_dataloader': dict(dataset=dataset)}), splits=[split])
        except AnnotationError as error:
            assert str(tmp_path) in str(error)
            assert '\n' not in str(error)
            return str(error)
        finally:
            logger.removeHandler(handler)
        return [record.getMessage() for record in records]

    return run


def changed(annotation, **fields):
    """The annotation with other fields; None takes one away."""
    out = {**copy.deepcopy(annotation), 'id': 8, **fields}
    return {name: value for name, value in out.items() if value is not None}


@pytest.mark.parametrize('persons', [False, True])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_sound_annotations_pass_in_silence(check, persons, split):
    crowd = dict(size=[HEIGHT, WIDTH], counts=[100, 50, HEIGHT * WIDTH - 150])
    everyday = [
        PERSON,
        changed(PERSON, id=9, iscrowd=1, segmentation=crowd),
        changed(PERSON, id=10, num_keypoints=0),
        changed(PERSON, id=11, bbox=[-10, -10, 200, 200]),
    ]
    assert check(content(*everyday), persons, split) == []


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        (dict(bbox=None), "no 'bbox'"),
        (dict(area=None), "no 'area'"),
        (dict(area='large'), "text in 'area'"),
        (dict(bbox=[1, 2, 3]), 'has 3 numbers'),
        (dict(bbox=[1, 2, math.inf, 4]), "inf or a text in 'bbox'"),
        (dict(bbox=[1, 2, 10**400, 4]), "inf or a text in 'bbox'"),
        (dict(segmentation=[[1, 1, 0.5, 10**400, 9, 9]]), "nan, an inf or a text in 'segm"),
        (dict(bbox=[1, 2, -3, 4]), 'negative size'),
        (dict(id=7), 'the id of another one'),
        (dict(segmentation=None), "no 'segmentation'"),
        (dict(segmentation=[]), "no 'segmentation'"),
        (dict(segmentation=[[1, 1, math.nan, 1, 9, 9]]), "nan, an inf or a text in 'segm"),
        (dict(segmentation=dict(size=[WIDTH, HEIGHT], counts=[9])), f'its image [{HEIGHT}, '),
        (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=[9])), "9 pixels in 'counts'"),
        (dict(segmentation=dict(size=[HEIGHT, WIDTH])), "without 'counts'"),
    ],
)
def test_faulty_object_is_named(check, fields, words, split):
    text = check(content(THING, changed(THING, **fields)), split=split)
    assert words in text and f'annotation {fields.get("id", 8)} (image 1)' in text


def rle(counts):
    return dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=counts))


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        # pycocotools: a segmentation fault, and gigabytes.
        (dict(segmentation=[[0, 0, 1e12, 0, 1e12, 1e12]]), 'more than 100,000 pixels away'),
        (dict(segmentation=[[-1e8, 0, 9, 0, 9, 9]]), 'more than 100,000 pixels away'),
        # An OverflowError, and a mask of what was in memory before.
        (rle([-5, HEIGHT * WIDTH + 5]), 'a negative number'),
        (rle([1.5, HEIGHT * WIDTH - 1.5]), 'something else than whole numbers'),
        (rle(['9']), 'something else than whole numbers'),
        (rle('0'), "mask of 0 pixels in 'counts'"),
        (rle('PP`'), 'no code of run lengths'),
        (rle('no code'), 'no code of run lengths'),
    ],
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_mask_that_would_be_drawn_of_nothing_is_named(check, fields, words, split):
    text = check(content(THING, changed(THING, **fields)), split=split)
    assert words in text and 'annotation 8 (image 1)' in text


def test_codes_of_run_lengths_are_those_of_pycocotools(check):
    codes = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        mask = np.asfortranarray(rng.random((HEIGHT, WIDTH)) < share, np.uint8)
        code = codes.encode(mask)['counts'].decode()
        assert check(content(THING, changed(THING, **rle(code)))) == []
        assert "in 'counts'" in check(content(THING, changed(THING, **rle(code + '9'))))


def test_what_only_the_evaluation_stumbles_on_is_refused_there(check):
    for fields, words in (
        (dict(iscrowd=None), "no 'iscrowd'"),
        (dict(segmentation=[[1, 1, 9, 9]]), 'has 4 numbers in a polygon'),
    ):
        written = content(THING, changed(THING, **fields))
        assert words in check(written, split='val')
        assert isinstance(check(written), list)
    # Without masks, nobody reads them.
    assert check(content(BOX), pipeline=[dict(type='LoadAnnotations', with_bbox=True)]) == []


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        (dict(keypoints=[9, 9, 2] * 16), 'has 48 numbers'),
        (dict(face_kpts=None), "no 'face_kpts'"),
        (dict(foot_kpts=[9, 9, math.nan] * 6), "nan, an inf or a text in 'foot_kpts'"),
        (dict(num_keypoints=None), "no 'num_keypoints'"),
        (dict(segmentation=None), "no 'segmentation'"),
        (dict(bbox=[math.nan, 0, 9, 9]), "in 'bbox'"),
    ],
)
def test_faulty_person_is_named(check, fields, words):
    text = check(content(PERSON, changed(PERSON, **fields)), persons=True)
    assert words in text and 'annotation 8 (image 1)' in text


def test_harmless_mistakes_are_counted_in_one_warning(check):
    boxes = ([100, 5, 20, 20], [5, 5, 0, 20], [-30, 5, 30, 9])
    outside = [changed(THING, id=20 + i, bbox=box) for i, box in enumerate(boxes)]
    flat = changed(THING, id=30, segmentation=[[1, 1, 9, 9]])
    area, polygon = check(content(THING, *outside, flat))
    assert '3 of 5 annotations have a box without area' in area and 'annotation 20)' in area
    assert '1 of 5' in polygon and 'not trained on' in polygon
    (area,) = check(content(THING, *outside), split='test')
    assert 'count as missed' in area
    # mmpose cuts a box at the centre of the last pixel, mmdet at its border.
    edge = changed(PERSON, bbox=[WIDTH - 0.5, 5, 20, 20])
    assert check(content(PERSON, edge)) == []
    (area,) = check(content(PERSON, edge), persons=True)
    assert '1 of 2' in area


def test_annotations_of_what_the_file_does_not_list_are_counted(check):
    lost = changed(PERSON, id=12, image_id=99, bbox=[math.nan] * 4)
    typed = changed(PERSON, id=13, image_id='1')
    for persons in (False, True):
        (image,) = check(content(PERSON, lost, typed), persons)
        assert '2 of 3 annotations have an image that the file does not list' in image
        assert 'are left out (the first: annotation 12)' in image
    (category,) = check(content(THING, changed(THING, category_id=999)))
    assert '1 of 2 annotations have a category that the file does not list' in category
    # One that is listed, and no class, is left out on purpose.
    written = content(THING, changed(THING, category_id=2))
    written['categories'].append(dict(id=2, name='cat'))
    assert check(written) == []


def test_keypoints_outside_the_image_are_counted(check):
    far = changed(PERSON, face_kpts=[9, 9, 2] * 67 + [WIDTH + 1, 9, 2])
    (outside,) = check(content(PERSON, far), persons=True)
    assert '1 of 2 annotations have keypoints outside the image' in outside
    assert 'annotation 8)' in outside
    assert check(content(changed(PERSON, face_kpts=[WIDTH, HEIGHT, 2] * 68)), persons=True) == []


@pytest.mark.parametrize('persons', [False, True])
def test_nothing_to_train_on_is_said_with_the_reasons(check, persons):
    crowd, none = changed(PERSON, iscrowd=1), changed(PERSON, id=9, bbox=[100, 5, 20, 20])
    text = check(content(crowd, none), persons)
    assert 'no annotation to train on among 2 of 1 images: 1 have iscrowd set, 1 have a box' in text
    assert 'train on among 0' in check(content(), persons)
    bare = changed(PERSON, **{name: [0] * 3 * count for name, count in PARTS.items()})
    if persons:
        assert '1 have no keypoints' in check(content(changed(PERSON, num_keypoints=0)), persons)
        assert '1 have no keypoints' in check(content(bare), persons)
        assert 'to test on' in check(content(crowd), persons, 'test')
    else:
        assert check(content(), split='test') == []  # a detector is tested on empty images, too


@pytest.mark.parametrize('persons', [False, True])
@pytest.mark.parametrize(
    ('part', 'change', 'words'),
    [
        ('images', lambda images: {1: images[0]}, "'images' is a dict, must be a list"),
        ('images', lambda images: [*images, None], "'images' has a NoneType at place 1"),
        ('images', lambda images: images * 2, 'image a.jpg has the id 1 of another one'),
        ('images', lambda images: [dict(images[0], id=[1])], "'id' [1], must be a whole number"),
        ('images', lambda images: [dict(images[0], file_name=5)], "no text as 'file_name'"),
        ('images', lambda images: [dict(images[0], height=0)], 'whole numbers of pixels from 1'),
        ('images', lambda images: [dict(images[0], width=math.nan)], 'whole numbers of pixels'),
        ('annotations', lambda _: None, "'annotations' is a NoneType"),
        ('annotations', lambda each: [*each, [1]], "'annotations' has a list at place 1"),
        ('annotations', lambda each: [dict(each[0], id=None)], "no 'id'"),
        ('annotations', lambda each: [dict(each[0], id=math.nan)], "'id' nan, must be a whole"),
        ('annotations', lambda each: [dict(each[0], image_id=[1])], "'image_id' [1], must be"),
        ('annotations', lambda each: [dict(each[0], category_id={})], "'category_id' {}, must"),
        # pycocotools would give the listed image the other's annotation.
        ('annotations', lambda each: [*each, dict(each[0], image_id=99)], 'id of another one'),
        ('categories', lambda _: [], "has no 'categories'"),
        ('categories', lambda _: ['person'], "'categories' has a str at place 0"),
        ('categories', lambda each: [dict(id=1)], "{'id': 1} has no 'name'"),
        ('categories', lambda each: [*each, dict(id=1, name='cat')], 'the id of another one'),
        ('categories', lambda each: [*each, dict(id=2, name='person')], 'the name of another one'),
    ],
)
def test_file_that_the_libraries_stumble_over_is_named(check, persons, part, change, words):
    written = content(PERSON)
    written[part] = change(written[part])
    assert words in check(written, persons)


def test_images_of_persons_have_numbers(check):
    written = content(changed(PERSON, image_id='1'))
    written['images'][0]['id'] = '1'
    assert check(written) == []
    assert "has 'id' '1', must be a whole number" in check(written, persons=True)


def test_categories_in_another_order_than_the_classes_are_said(check):
    written = content(THING)
    written['categories'] = [dict(id=1, name='person'), dict(id=2, name='cat')]
    assert check(written, metainfo=dict(classes=('person', 'dog', 'cat'))).count("'dog'") == 1
    assert "'person' where the classes have 'cat'" in check(
        written, metainfo=dict(classes=('cat', 'person'))
    )
    assert check(written, metainfo=dict(classes=('person', 'cat', 'dog'))) == []


def test_classes_that_the_file_does_not_know_are_said(check):
    written = content(THING)
    written['categories'] = [dict(id=1, name='zebra')]
    text = check(written)
    assert 'zebra' in text and 'person' in text and 'metainfo' in text


@pytest.mark.parametrize(
    ('written', 'words'),
    [
        ('{"images": [', 'is no whole JSON file'),
        # What json.load takes of bytes, and pycocotools does not take.
        (b'\xef\xbb\xbf{"images": []}', 'is no whole JSON file (Unexpected UTF-8 BOM'),
        ('{"images": []}'.encode('utf-16'), 'is no whole JSON file'),
        ('[' * 200_000, 'is no whole JSON file'),
        ('[]', 'holds a list, must be a dict'),
        (dict(images=[]), 'lists no images'),
        (dict(images=[dict(id=1, file_name='a.jpg', width=9)]), "image a.jpg has no 'height'"),
    ],
)
def test_file_that_is_no_annotation_file_is_named(check, written, words):
    assert words in check(written)


@pytest.mark.parametrize(
    ('boxes', 'words'),
    [
        ([dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9], score=0.5)], None),
        ([dict(image_id=5, category_id=1, bbox=[0, 0, 9, 9], score=0.5)], 'is of image 5'),
        ([dict(image_id=1, category_id=1, bbox=[0, 0, 9, math.nan], score=0.5)], 'nan'),
        ([dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9], score=math.nan)], "in 'score'"),
        ([dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9])], "no 'score'"),
        ([dict(image_id=1, category_id=1, bbox=[0, 0, 9, 10**400], score=1.0)], "in 'bbox'"),
        ([dict(image_id=[1], category_id=1, bbox=[0, 0, 9, 9], score=1.0)], "'image_id' [1], must"),
        ([dict(image_id=None, category_id=1, bbox=[0, 0, 9, 9], score=1.0)], "'image_id' None"),
        ([[1, 2, 3]], 'box 0 (counted from 0) is a list, must be a dict'),
        ([], 'holds no boxes'),
        (dict(boxes=1), 'must be a list'),
    ],
)
def test_a_detectors_boxes_are_checked(check, tmp_path, boxes, words):
    path = tmp_path / 'boxes.json'
    path.write_text(json.dumps(boxes))
    # With boxes of a detector, nobody needs the annotated ones.
    found = check(content(changed(PERSON, iscrowd=1)), True, 'val', bbox_file=str(path))
    assert found == [] if words is None else (words in found and str(path) in found)


def test_sizes_are_read_without_the_annotations(tmp_path):
    path, images = tmp_path / 'a.json', content()['images']
    for written in (
        dict(images=images, annotations=[dict(images=[1])]),
        dict(annotations=[[1]], images=[dict(images[0], tags=['x', 'y'])]),
        dict(info=dict(images='no list'), licenses=[dict(id=1)], images=images),
    ):
        path.write_text(json.dumps(written))
        assert image_sizes(str(path)) == {1: (HEIGHT, WIDTH)}
