"""Spoiled data sets, one of each kind: the audit names what is wrong, and nothing else."""

import copy
import gc
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
import mmseg.registry
from encoding import encode
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from clustr_mm.datasets import label_report
from clustr_mm.datasets.audit import audit
from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.engine.config import set_data_root

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LAYOUTS = {
    'seg': ('ade20k', 'mmseg/upernet_clustr_pvtb0_mini.py'),
    'det': ('coco', 'mmdet/mask_rcnn_clustr_t_mini.py'),
    'pose': ('coco_wholebody', 'mmpose/topdown_clustr_t_mini.py'),
    'cls': ('imagenet', 'mmpretrain/clustr_t_mini.py'),
}
FOLDERS = {'seg': 'images/training', 'det': 'train2017', 'pose': 'train2017', 'cls': 'train'}
JSONS = {'det': 'instances_{}2017.json', 'pose': 'coco_wholebody_{}_v1.0.json'}


@pytest.fixture(scope='module')
def mini(tmp_path_factory):
    """Ten small scenes a split in every layout, and the configs that read them."""
    roots = build(tmp_path_factory.mktemp('audit') / 'mini', MiniData('all', 10, 10, (48, 64)))
    configs = {task: Config.fromfile(CONFIGS / path) for task, (_, path) in LAYOUTS.items()}
    # mmengine collects garbage for every data set, and this process has much that is none.
    gc.collect()
    gc.freeze()
    yield roots, configs
    gc.unfreeze()


class Spoilt:
    """A data set to spoil: the names of what is in it, and what the audit says of it."""

    def __init__(self, mini, task, folder):
        roots, configs = mini
        self.root = Path(shutil.copytree(roots[LAYOUTS[task][0]], folder / 'data'))
        self.cfg = copy.deepcopy(configs[task])
        set_data_root(self.cfg, str(self.root))
        self.task = task
        files = sorted(each for each in (self.root / FOLDERS[task]).rglob('*.*') if each.is_file())
        self.image = files[0]
        self.labels = self.root / 'annotations' / 'training' / f'{self.image.stem}.png'
        self.said = []

    def json(self, change, split='train'):
        """Changes an annotation file's content, or writes another."""
        path = self.root / 'annotations' / JSONS[self.task].format(split)
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(changed if isinstance(changed, str) else json.dumps(content))
        return path

    def annotation(self, split='train', **fields):
        """Gives an annotation other values; ... takes a field away."""

        def change(content):
            faulty = content['annotations'][3]
            for name, value in fields.items():
                if value is ...:
                    del faulty[name]
                else:
                    faulty[name] = value

        return self.json(change, split)

    def faults(self, decode=True):
        self.said = list(audit(self.cfg, decode))
        lines = [line for line in self.said if line.startswith('fault: ')]
        return [line.removeprefix('fault: ') for line in lines]


@pytest.fixture
def spoilt(mini, tmp_path):
    return lambda task: Spoilt(mini, task, tmp_path)


@pytest.mark.parametrize('task', LAYOUTS)
def test_whole_data_has_no_fault(spoilt, task):
    data = spoilt(task)
    assert data.faults() == []
    counts = [line for line in data.said if ' images, ' in line]
    assert len(counts) == 2 and all(str(data.root) in line for line in counts)
    assert task == 'pose' or ': 10 images' in counts[1]  # or one without a person


def cut(data):
    return data[: len(data) // 2]


def test_damaged_images_are_each_named(spoilt):
    data = spoilt('det')
    read = images_of(data, 'train')
    missing, empty, folder, half, page = read[:5]
    missing.unlink()
    empty.write_bytes(b'')
    folder.unlink()
    folder.mkdir()
    half.write_bytes(cut(half.read_bytes()))
    page.write_bytes(b'<!DOCTYPE html><title>404 Not Found</title>')
    quick = data.faults(decode=False)
    assert [str(path) in line for path, line in zip(read[:3], quick, strict=True)] == 3 * [True]
    lines = data.faults()
    words = ['No such file', 'is empty', 'Is a directory', 'truncated', 'is not an image']
    for path, word, line in zip(read[:5], words, lines, strict=True):
        assert str(path) in line and word in line and '\n' not in line


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (None, 'No such file'),
        (lambda path: cut(path.read_bytes()), 'truncated or corrupt'),
        (lambda path: b'1 1 2 2', 'is not an image'),
        (lambda path: encode(Image.open(path).convert('RGB'), 'PNG'), 'no label map: shape'),
        (lambda path: encode(Image.open(path), 'JPEG'), 'is a JPEG'),
        (lambda path: png(np.maximum(labels(path), 200)), 'labels 199 are no class, must be 0'),
        (lambda path: png(np.uint16(labels(path)) + 300), 'read as 8 bits'),
        (lambda path: tiff(labels(path) / np.float32(2)), 'read as 8 bits'),
        (lambda path: png(labels(path)[::2]), 'must have one size'),
    ],
    ids=['missing', 'cut', 'text', 'colours', 'jpeg', 'no class', '16 bits', 'float', 'size'],
)
def test_label_map_is_named(spoilt, make, words):
    data = spoilt('seg')
    content = make and make(data.labels)
    data.labels.unlink()
    if content:
        data.labels.write_bytes(content)
    lines = data.faults()
    assert all(str(data.labels) in line for line in lines)
    assert any(words in line for line in lines)


def labels(path):
    return np.array(Image.open(path))


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


def tiff(image):
    return cv2.imencode('.tiff', image)[1].tobytes()


def test_a_broken_image_hides_no_broken_label_map(spoilt):
    data = spoilt('seg')
    for file in (data.image, data.labels):
        file.write_bytes(file.read_bytes()[:99])
    lines = data.faults()
    assert {str(data.image), str(data.labels)} == {line.split()[0] for line in lines}


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        (dict(bbox=[math.nan, 1, 9, 9]), "'bbox' [nan"),
        (dict(bbox=[30, 30, -20, 10]), 'negative size'),
        (dict(segmentation=[[1, 1, 9, math.nan, 9, 9]]), 'NaN, an inf or something else'),
        (dict(segmentation=[[0, 0, 1e8, 0, 1e8, 1e8]]), 'pixels away'),
        (dict(segmentation=dict(size=[9, 9], counts=[0, 81])), 'mask of size [9, 9]'),
        (dict(segmentation=dict(size=[48, 64], counts=[0, 99])), 'not run lengths of 3072 pixels'),
        (dict(segmentation=dict(size=[48, 64], counts='no code')), 'cannot be decoded'),
        (dict(segmentation=...), "no 'segmentation'"),
    ],
)
def test_annotation_of_an_object_is_named(spoilt, fields, words):
    data = spoilt('det')
    path = data.annotation(**fields)
    (line,) = data.faults()
    assert line.startswith(f'{path}: annotation ') and words in line


@pytest.mark.parametrize(
    ('task', 'fields', 'words'),
    [
        ('det', dict(area=...), "no 'area'"),
        ('pose', dict(face_kpts=...), "no 'face_kpts'"),
        ('pose', dict(keypoints=[1, 2, 2]), "3 numbers in 'keypoints', those before it 51"),
        ('pose', dict(keypoints=None), 'cannot be read (TypeError'),
        ('pose', dict(keypoints=[math.nan] * 51), 'NaN, an inf or something else than numbers'),
    ],
)
def test_annotation_that_a_library_cannot_read_is_named(spoilt, task, fields, words):
    data = spoilt(task)
    path = data.annotation(**fields)
    (line,) = data.faults(decode=False)
    assert str(path) in line and words in line


def test_annotation_that_only_a_metric_reads_is_named(spoilt):
    data = spoilt('det')
    data.annotation(iscrowd=...)  # nobody reads it in training
    path = data.annotation('val', iscrowd=...)
    (line,) = data.faults(decode=False)
    assert line.startswith(f'{path}: annotation ') and "no 'iscrowd'" in line


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda content: json.dumps(content)[:-9], 'cannot be read (JSONDecodeError'),
        (lambda content: json.dumps([content]), 'cannot be read ('),
        (lambda content: content['categories'].reverse(), 'stand in another order'),
        (lambda content: content['categories'][0].update(name='man'), 'no category is called pers'),
        (lambda content: content['images'].append(content['images'][0]), 'images are there twice'),
        (lambda content: content['annotations'].clear(), 'no sample is left'),
    ],
    ids=['cut', 'list', 'order', 'name', 'twice', 'none'],
)
def test_annotation_file_is_named(spoilt, change, words):
    data = spoilt('det')
    path = data.json(lambda content: change(content))
    lines = data.faults(decode=False)
    assert str(path) in lines[0] and words in lines[0]


def test_what_a_library_passes_over_is_said(spoilt):
    data = spoilt('det')

    def change(content):
        first, second, third, *_ = content['annotations']
        first['image_id'], second['category_id'], third['bbox'] = 999, 999, [70, 3, 9, 9]

    data.json(change)
    assert data.faults(decode=False) == []
    said = [line for line in data.said if line.startswith('warning: ')]
    for words in ('an image that the file does not list', 'a category that', 'a box without area'):
        assert any('1 of ' in line and words in line for line in said)


def test_boxes_of_corners_are_said(spoilt):
    data = spoilt('det')

    def change(content):
        for each in content['annotations']:
            x, y, width, height = each['bbox']
            each['bbox'] = [x, y, x + width, y + height]

    data.json(change)
    assert data.faults(decode=False) == []
    assert any('reach out of their image' in line for line in data.said)


def images_of(data, split):
    """The images that have annotations."""
    path = data.root / 'annotations' / JSONS[data.task].format(split)
    content = json.loads(path.read_text())
    used = {each['image_id'] for each in content['annotations'] if each.get('num_keypoints', 1)}
    names = [image['file_name'] for image in content['images'] if image['id'] in used]
    return [data.root / f'{split}2017' / name for name in names]


@pytest.mark.parametrize('task', ['det', 'pose'])
def test_picture_of_another_size_than_its_annotations_is_named(spoilt, task):
    data = spoilt(task)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by 90 degrees
    file = images_of(data, 'val')[0]
    file.write_bytes(encode(Image.open(file), 'JPEG', exif=exif))
    (line,) = data.faults()
    assert str(file) in line and '64x48' in line and '48x64' in line and 'EXIF' in line


def test_folders_of_classes(spoilt):
    data = spoilt('cls')
    folder = data.image.parent
    data.image.unlink()
    assert data.faults(decode=False) == []
    (line,) = (line for line in data.said if line.startswith('warning: '))
    assert f'1 of 10 classes have not one image in 9 samples: {folder.name}' in line
    shutil.rmtree(folder)
    lines = data.faults(decode=False)
    assert any('different classes' in line and folder.name in line for line in lines)


def test_heads_for_another_number_of_classes_are_named(spoilt):
    data = spoilt('det')
    data.cfg.model.roi_head.mask_head.num_classes = 80
    (line,) = data.faults(decode=False)
    assert 'num_classes of FCNMaskHead is 80' in line and '7 classes' in line


def masks_of_0_and_255(data):
    """Makes two classes, of which nothing is labelled as the second, as paint programs do."""
    for split in ('training', 'validation'):
        for file in (data.root / 'annotations' / split).iterdir():
            file.write_bytes(png(np.uint8(255) * (labels(file) > 3)))
    for split in ('train', 'val', 'test'):
        dataset = data.cfg[f'{split}_dataloader'].dataset
        dataset.update(metainfo=dict(classes=('nothing', 'thing')), type='BaseSegDataset')
        for step in dataset.pipeline:
            step.pop('reduce_zero_label', None)
    data.cfg.model.decode_head.num_classes = 2


def test_class_without_a_pixel_is_named(spoilt):
    data = spoilt('seg')
    masks_of_0_and_255(data)
    (line,) = data.faults(decode=False)
    assert '1 of 2 classes have not one pixel in 10 samples: thing' in line
    assert 'of the pixels are 255, which is ignored' in line
    assert any(line.startswith('warning: val: 1 of 2 classes') for line in data.said)


def test_annotations_of_other_classes_are_not_judged(spoilt):
    """Nobody reads them: of COCO's 80 classes one may train three."""
    data = spoilt('det')
    gone = data.json(lambda content: content['annotations'][3].update(segmentation=[]))
    (line,) = data.faults(decode=False)
    assert str(gone) in line
    content = json.loads(gone.read_text())
    category = content['annotations'][3]['category_id']
    kept = [c['name'] for c in content['categories'] if c['id'] != category]
    classes = tuple(c for c in data.cfg.metainfo.classes if c in kept)
    for split in ('train', 'val', 'test'):
        data.cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    heads = data.cfg.model.roi_head
    heads.bbox_head.num_classes = heads.mask_head.num_classes = len(classes)
    assert data.faults(decode=False) == []


def test_label_report_says_so_from_a_few_samples(spoilt):
    data = spoilt('seg')
    init_default_scope('mmseg')
    masks_of_0_and_255(data)
    made = DATASETS.build(data.cfg.train_dataloader.dataset)
    (line,) = label_report(made, limit=3)
    assert '1 of 2 classes have not one pixel' in line and '255, which is ignored' in line
    twice = dict(type='RepeatDataset', dataset=data.cfg.train_dataloader.dataset, times=2)
    assert label_report(DATASETS.build(twice), limit=3) == [line]


@pytest.mark.parametrize('task', LAYOUTS)
def test_label_report_of_whole_data_is_empty(spoilt, task):
    data = spoilt(task)
    init_default_scope(data.cfg.default_scope)
    assert label_report(DATASETS.build(data.cfg.train_dataloader.dataset), limit=50) == []


def test_unlabelled_parts_of_a_wrapper_are_sound(spoilt):
    """As of semi-supervised training: one part has no annotation, and keeps its images."""
    data = spoilt('det')
    first = data.cfg.train_dataloader.dataset
    bare = data.root / 'annotations' / 'bare.json'
    content = json.loads((data.root / 'annotations' / JSONS['det'].format('train')).read_text())
    bare.write_text(json.dumps({**content, 'annotations': []}))
    second = dict(first, ann_file='annotations/bare.json', filter_cfg=dict(filter_empty_gt=False))
    data.cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[first, second])
    assert data.faults() == []


def test_label_report_does_not_take_few_samples_for_all(spoilt):
    """Of a thousand classes no two hundred images show half."""
    data = spoilt('cls')
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(data.cfg.train_dataloader.dataset)
    assert label_report(dataset, limit=4) == []
    for file in data.image.parents[1].rglob('*.JPEG'):
        if file.parent != data.image.parent:
            file.unlink()
    (line,) = label_report(DATASETS.build(data.cfg.train_dataloader.dataset))
    assert '9 of 10 classes have not one image in 1 samples' in line


@DATASETS.register_module()
class Foreign(torch.utils.data.Dataset):
    """Of no library."""

    def __getitem__(self, index):
        return index


def test_what_is_no_data_set_of_the_libraries_is_left_alone():
    loader = dict(dataset=dict(type='Foreign', data_root='s3://nowhere', pipeline=['any', 'thing']))
    assert list(audit(dict(train_dataloader=loader), decode=True)) == [
        'train_dataloader.dataset: no data set of mmengine, and not looked into'
    ]
    child = dict(default_scope='mmseg', train_dataloader=loader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mmseg.registry.DATASETS.module_dict, 'Foreign', Foreign)
        assert len(list(audit(child, decode=True))) == 1
    loader = dict(dataset=dict(type='mmseg.ADE21KDataset', data_root='.'))
    (line,) = audit(dict(train_dataloader=loader))
    assert line.startswith('fault: ') and 'ADE21KDataset is not in' in line
