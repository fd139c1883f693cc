"""Odd but sound data, whole runs: every task trains and tests on it; a damaged file is named."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
import cv2
from encoding import encode
from PIL import Image

from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.datasets.mini.mini import rle
from clustr_mm.engine import UserError, train
from clustr_mm.engine import test as evaluate  # a name that pytest does not collect

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
EPOCH = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_begin=9',
    'default_hooks.checkpoint.interval=1',
]
# By task: the config, the mini data's layout, and what makes the run small.
TASKS = {
    'det': (
        'mmdet/mask_rcnn_clustr_t_mini.py',
        'coco',
        [
            *EPOCH, 'train_dataloader.dataset.pipeline.2.scale=(64,64)',
            'test_dataloader.dataset.pipeline.1.scale=(64,64)',
            # Images without an object, too.
            'train_dataloader.dataset.filter_cfg.filter_empty_gt=False',
        ],
    ),
    'pose': ('mmpose/topdown_clustr_t_mini.py', 'coco', EPOCH),
    'cls': ('mmpretrain/clustr_t_mini.py', 'imagenet', EPOCH),
    'seg': (
        'mmseg/upernet_clustr_pvtb0_mini.py',
        'ade20k',
        [
            'train_cfg.max_iters=5', 'train_cfg.val_begin=9',
            'model.data_preprocessor.size=(64,64)', 'default_hooks.checkpoint.interval=5',
            # In order, so that every file is met once.
            'train_dataloader.sampler.shuffle=False',
        ],
    ),
}  # fmt: skip
SMALL = [
    'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0', 'default_hooks.logger.interval=1',
]  # fmt: skip
JSONS = {'det': 'instances_{}2017.json', 'pose': 'coco_wholebody_{}_v1.0.json'}


@pytest.fixture(scope='module')
def mini(tmp_path_factory):
    """Ten small scenes a split in every layout."""
    folder = tmp_path_factory.mktemp('odd') / 'mini'
    return build(folder, MiniData('all', 10, 10, (64, 64)))


@pytest.fixture
def data(mini, tmp_path):
    """Gives a task's data set as a folder to spoil."""

    def copy(task):
        return Path(shutil.copytree(mini[TASKS[task][1]], tmp_path / 'data'))

    return copy


def arguments(task, root, tmp_path, *options, batch=1):
    # mmengine names a run's logger by the second: two runs within one would share a log.
    name = f'experiment_name={tmp_path.name}_{len(list(tmp_path.iterdir()))}'
    return [
        '--data-root', str(root), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu',
        '--cfg-options', *SMALL, *TASKS[task][2], f'train_dataloader.batch_size={batch}', name,
        *options,
    ]  # fmt: skip


def fit(task, root, tmp_path, *options, **more):
    """Trains, and returns the loss of every step."""
    config = str(CONFIGS / TASKS[task][0])
    train([config, *arguments(task, root, tmp_path, *options, **more)])
    log = ''.join(path.read_text() for path in sorted((tmp_path / 'run').glob('*/*.log')))
    return [float(loss) for loss in re.findall(r'\(train\).*? loss: (\S+)', log)]


def score(task, root, tmp_path, *options):
    """Tests what `fit` trained, and returns the metrics."""
    checkpoint = max((tmp_path / 'run').glob('*_*.pth'))
    run = arguments(task, root, tmp_path, *options)
    return evaluate([str(CONFIGS / TASKS[task][0]), str(checkpoint), *run])


def annotations(root, task, split):
    """Reads a COCO file: its path, its content, and the annotations by image, most first."""
    path = root / 'annotations' / JSONS[task].format(split)
    content = json.loads(path.read_text())
    by_image = {image['id']: [] for image in content['images']}
    for each in content['annotations']:
        by_image[each['image_id']].append(each)
    content['images'].sort(key=lambda image: -len(by_image[image['id']]))
    return path, content, [by_image[image['id']] for image in content['images']]


def turned(image):
    exif = image.getexif()
    exif[0x0112] = 6
    return encode(image, 'JPEG', exif=exif)


ODD_FILES = {
    'grey': lambda image: encode(image.convert('L'), 'JPEG'),
    'cmyk': lambda image: encode(image.convert('CMYK'), 'JPEG'),
    '16-bit': lambda image: cv2.imencode('.png', np.uint16(image)[..., ::-1] * 257)[1].tobytes(),
    'alpha': lambda image: encode(image.convert('RGBA'), 'PNG'),
    'palette': lambda image: encode(image.quantize(64), 'PNG'),
    # Squares: turned, they still fit their annotations' size.
    'exif': turned,
}


def rewrite(path, make):
    """Writes a picture anew, under its old name (the content says what it is)."""
    with Image.open(path) as image:
        data = make(image.copy())
    path.write_bytes(data)


def assert_finite(losses, count):
    assert len(losses) == count
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
def test_detection_goes_through_all_that_is_odd_but_sound(data, tmp_path):
    root = data('det')
    for split in ('train', 'val'):
        path, content, by_image = annotations(root, 'det', split)
        files = [root / f'{split}2017' / image['file_name'] for image in content['images']]
        crowds, outside, pixels, speck = by_image[:4]
        for each in crowds:
            each['iscrowd'] = 1
        boxes = [[-20, -10, 60, 60], [70, 70, 20, 20], [10, 10, 0, 20], [-30, 0, 20, 64]]
        for each, box in zip(outside, boxes, strict=False):
            each['bbox'] = box
        mask = np.zeros((64, 64), bool)
        mask[10, 20] = True
        for each in pixels:
            each.update(segmentation=rle(mask), bbox=[20, 10, 1, 1], area=1)
        content['images'][3].update(height=1, width=1)
        rewrite(files[3], lambda image: encode(image.crop((0, 0, 1, 1)), 'PNG'))
        for each in speck:
            each.update(segmentation=dict(size=[1, 1], counts=[0, 1]), bbox=[0, 0, 1, 1], area=1)
        for file, make in zip(files[4:], ODD_FILES.values(), strict=True):
            rewrite(file, make)
        # Two images have no annotation at all.
        gone = {image['id'] for image in content['images'][-2:]}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] not in gone]
        path.write_text(json.dumps(content))
    # One image a batch: a crowd's, and one without an object, make a batch without an object.
    assert_finite(fit('det', root, tmp_path), 10)
    metrics = score('det', root, tmp_path)
    for name in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert 0 <= metrics[name] < 0.5  # one step a picture teaches nothing


@pytest.mark.slow
def test_pose_goes_through_all_that_is_odd_but_sound(data, tmp_path):
    root = data('pose')
    trained = dict.fromkeys(('train', 'val'), 0)
    for split in trained:
        path, content, by_image = annotations(root, 'pose', split)
        persons = [each for image in by_image for each in image]
        crowd, bare, body, part, gone, tiny = persons[:6]
        crowd['iscrowd'] = 1
        parts = ('foot_kpts', 'face_kpts', 'lefthand_kpts', 'righthand_kpts')
        for name in ('keypoints', *parts):
            bare[name] = [0] * len(bare[name])
        bare['num_keypoints'] = 0
        for name in parts:
            body[name] = [0] * len(body[name])
            body[name.replace('_kpts', '_valid')] = False
        part['bbox'] = [-20, -20, 60, 60]
        gone['bbox'] = [100, 100, 20, 20]
        tiny['bbox'] = [10, 10, 1, 1]
        for image, make in zip(content['images'], ODD_FILES.values(), strict=False):
            rewrite(root / f'{split}2017' / image['file_name'], make)
        path.write_text(json.dumps(content))
        trained[split] = len(persons) - 3  # the crowd, who has no keypoints, who is not inside
    assert_finite(fit('pose', root, tmp_path, batch=2), math.ceil(trained['train'] / 2))
    metrics = score('pose', root, tmp_path)
    assert 0 <= metrics['coco-wholebody/AP'] < 0.5


def test_classification_goes_through_all_that_is_odd_but_sound(data, tmp_path):
    root = data('cls')
    for split in ('train', 'val'):
        files = sorted((root / split).rglob('*.JPEG'))
        odd = {**ODD_FILES, 'speck': lambda image: encode(image.crop((0, 0, 1, 1)), 'JPEG')}
        for file, make in zip(files, odd.values(), strict=False):
            rewrite(file, make)
    assert_finite(fit('cls', root, tmp_path, batch=2), 5)
    # Unlike in training, nothing brings the pictures to one size.
    metrics = score('cls', root, tmp_path, 'test_dataloader.batch_size=1')
    assert 0 <= metrics['accuracy/top1'] <= 100


def test_segmentation_goes_through_all_that_is_odd_but_sound(data, tmp_path):
    root = data('seg')
    for split in ('training', 'validation'):
        labels = sorted((root / 'annotations' / split).iterdir())
        for file, make in zip(
            sorted((root / 'images' / split).iterdir()), ODD_FILES.values(), strict=False
        ):
            rewrite(file, make)
        label = np.array(Image.open(labels[0]))
        palette = Image.fromarray(label)
        palette.putpalette(bytes(range(255, -1, -1)) * 3)
        palette.save(labels[0])
        cv2.imwrite(str(labels[1]), label.astype(np.uint16))
        cv2.imwrite(str(labels[2]), np.zeros_like(label))  # no pixel that counts
    assert_finite(fit('seg', root, tmp_path, batch=2), 5)
    metrics = score('seg', root, tmp_path)
    assert 0 <= metrics['mIoU'] < 50


def test_damaged_picture_stops_the_run_or_is_skipped(data, tmp_path):
    root = data('cls')
    file = min((root / 'train').rglob('*.JPEG'))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError) as error:
        fit('cls', root, tmp_path)
    line = str(error.value)
    assert f'{file} is truncated or corrupt' in line and '\n' not in line
    again = tmp_path / 'again'
    again.mkdir()
    skip = 'default_hooks.broken_files.action=skip'
    assert_finite(fit('cls', root, again, skip, batch=2), 5)
    log = ''.join(path.read_text() for path in (again / 'run').glob('*/*.log'))
    assert f'skipped a sample: {file}' in log
