"""A missing or faulty data set is said before anything is built, with what it must be."""

import copy
import json
import logging
import math

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from clustr_mm.datasets import DataNotFoundError, check_data_root
from clustr_mm.datasets.check import AnnotationError, image_sizes
from clustr_mm.datasets.mini import MiniData, build


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    return build(tmp_path_factory.mktemp('data') / 'mini', MiniData('all', 10, 10, (48, 48)))


def ade(root, **more):
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    return dict(type='ADE20KDataset', data_root=str(root), data_prefix=prefix, **more)


def coco(root, **more):
    return dict(
        type='mmdet.CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        **more,
    )


def config(dataset, split='train', **more):
    return Config({f'{split}_dataloader': dict(dataset=dataset), **more})


def message(cfg, **options):
    with pytest.raises(DataNotFoundError) as error:
        check_data_root(cfg, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_all_layouts_pass(roots):
    wholebody = dict(
        type='CocoWholeBodyDataset',
        data_root=str(roots['coco_wholebody']),
        ann_file='annotations/coco_wholebody_train_v1.0.json',
        data_prefix=dict(img='train2017/'),
    )
    for dataset in (
        ade(roots['ade20k']),
        coco(roots['coco']),
        wholebody,
        dict(type='ImageNet', data_root=str(roots['imagenet']), split='train'),
        dict(type='CustomDataset', data_root=str(roots['imagenet']), data_prefix='val'),
    ):
        for split in ('train', 'val', 'test'):
            check_data_root(config(dataset, split))


def test_missing_root_says_tree_and_mend(tmp_path):
    text = message(config(ade(tmp_path / 'nowhere')))
    for part in (
        str(tmp_path / 'nowhere'),
        'ADE20KDataset',
        'train_dataloader',
        'images/{training,validation}/*.jpg',
        '--data-root DIR',
        'make_mini_data.py DIR --layout ade20k',
    ):
        assert part in text


def test_missing_and_empty_folders_below_the_root(tmp_path):
    (tmp_path / 'images/training').mkdir(parents=True)
    assert 'is empty' in message(config(ade(tmp_path)))
    (tmp_path / 'images/training/a.jpg').write_bytes(b'x')
    assert f'not found: {tmp_path}/annotations/training' in message(config(ade(tmp_path)))


def test_missing_annotation_file(roots, tmp_path):
    (tmp_path / 'val2017').mkdir()
    text = message(config(coco(tmp_path), 'val'))
    assert f'{tmp_path}/annotations/instances_val2017.json' in text and '--layout coco' in text


def test_wrappers_are_opened(roots, tmp_path):
    inner = dict(type='RepeatDataset', times=2, dataset=ade(tmp_path / 'gone'))
    both = dict(type='ConcatDataset', datasets=[ade(roots['ade20k']), inner])
    assert 'train_dataloader.dataset.datasets.1.dataset' in message(config(both))


def test_missing_box_file_says_how_to_do_without(roots):
    cfg = config(coco(roots['coco'], bbox_file='data/boxes.json'), 'val')
    assert 'val_dataloader.dataset.bbox_file=None' in message(cfg)
    cfg.val_dataloader.dataset.bbox_file = None
    check_data_root(cfg)


def test_evaluators_annotation_file(roots):
    evaluator = [dict(type='X'), dict(type='CocoMetric', ann_file='gone.json')]
    cfg = config(coco(roots['coco']), 'val', val_evaluator=evaluator)
    assert 'val_evaluator' in message(cfg) and 'gone.json' in message(cfg)


def test_only_the_splits_that_run_are_checked(roots, tmp_path):
    cfg = config(ade(roots['ade20k']), test_dataloader=dict(dataset=ade(tmp_path / 'gone')))
    check_data_root(cfg, splits=['train', 'val'])
    assert 'test_dataloader' in message(cfg)


def test_configs_without_data_pass():
    check_data_root(Config(dict(model=dict(type='X'), train_dataloader=None)))


def test_unknown_type_has_no_tree_but_a_mend(tmp_path):
    text = message(config(dict(type='LadybirdDataset', data_root=str(tmp_path / 'x'))))
    assert 'LadybirdDataset' in text and '--data-root' in text and 'expected tree' not in text


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
        path.write_text(written if isinstance(written, str) else json.dumps(written))
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
            check_data_root(config(dataset, split), splits=[split])
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
        changed(PERSON, id=12, image_id=99, bbox=[math.nan] * 4),  # of no listed image
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


def test_classes_that_the_file_does_not_know_are_said(check):
    written = content(THING)
    written['categories'] = [dict(id=1, name='zebra')]
    text = check(written)
    assert 'zebra' in text and 'person' in text and 'metainfo' in text


@pytest.mark.parametrize(
    ('written', 'words'),
    [
        ('{"images": [', 'is no whole JSON file'),
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
