"""Odd data, whole runs: every task trains and tests on it, or ends with the file's name."""

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
from clustr_mm.datasets.masks import rle
from encoding import encode
from PIL import Image

from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.engine import UserError, train
from clustr_mm.engine import test as evaluate  # a name that pytest does not collect
from clustr_mm.engine.errors import run_tool

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
        'mmseg/upernet_clustr_t_mini.py',
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
    """Tests what `fit` trained, and returns metrics and predictions."""
    checkpoint = max((tmp_path / 'run').glob('*_*.pth'))
    out = ['--out', str(tmp_path / 'out.json')]
    run = arguments(task, root, tmp_path, *options)
    metrics = evaluate([str(CONFIGS / TASKS[task][0]), str(checkpoint), *out, *run])
    return metrics, json.loads((tmp_path / 'out.json').read_text())


def refused(task, root, tmp_path, *options):
    """Trains, and returns the one line that it ends with."""
    with pytest.raises(UserError) as error:
        fit(task, root, tmp_path, *options)
    assert '\n' not in str(error.value)
    return str(error.value)


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
    metrics, records = score('det', root, tmp_path)
    assert len(records) == 10
    for name in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert 0 <= metrics[name] < 0.5  # one step a picture teaches nothing


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
    metrics, records = score('pose', root, tmp_path)
    assert sum(len(record['persons']) for record in records) == trained['val']
    assert 0 <= metrics['coco-wholebody/AP'] < 0.5


def test_classification_goes_through_all_that_is_odd_but_sound(data, tmp_path):
    root = data('cls')
    for split in ('train', 'val'):
        files = sorted((root / split).rglob('*.JPEG'))
        odd = {**ODD_FILES, 'speck': lambda image: encode(image.crop((0, 0, 1, 1)), 'JPEG')}
        for file, make in zip(files, odd.values(), strict=False):
            rewrite(file, make)
    assert_finite(fit('cls', root, tmp_path, batch=2), 5)
    metrics, records = score('cls', root, tmp_path, 'test_dataloader.batch_size=5')
    assert len(records) == 10
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
    metrics, records = score('seg', root, tmp_path)
    assert len(records) == 10
    assert 0 <= metrics['mIoU'] < 50


def test_picture_of_another_size_than_its_annotations_is_named(data, tmp_path):
    root = data('pose')
    path, content, _ = annotations(root, 'pose', 'train')
    content['images'] = content['images'][:3]  # annotations of others are nobody's
    path.write_text(json.dumps(content))
    file = root / 'train2017' / content['images'][0]['file_name']
    rewrite(file, lambda image: encode(image.resize((80, 50)), 'JPEG'))
    line = refused('pose', root, tmp_path)
    assert str(file) in line and '50x80' in line and '64x64' in line
    # A run that may go on without it does, and says so.
    losses = fit('pose', root, tmp_path, 'on_broken_file=skip')
    assert losses and all(math.isfinite(loss) for loss in losses)
    log = ''.join(path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    assert f'skipped a sample: {file}' in log


def test_picture_turned_by_exif_is_named_with_a_mend_that_works(data, tmp_path):
    root = data('det')
    path, content, by_image = annotations(root, 'det', 'train')
    content['images'] = content['images'][:2]
    # The annotations fit the pixels as stored, and not as turned.
    content['images'][0]['height'] = 48
    for each in by_image[0]:
        each['segmentation'] = [[1, 1, 20, 1, 20, 20]]
    path.write_text(json.dumps(content))
    file = root / 'train2017' / content['images'][0]['file_name']
    rewrite(file, lambda image: turned(image.crop((0, 0, 64, 48))))
    line = refused('det', root, tmp_path)
    assert str(file) in line and '64x48' in line and 'EXIF' in line
    mend = re.search(r"color_type='(\w+)'", line)[1]
    option = f'train_dataloader.dataset.pipeline.0.color_type={mend}'
    assert_finite(fit('det', root, tmp_path, option), 2)


def shallow(image):
    """12 bits of grey in a file of 16."""
    return cv2.imencode('.png', np.uint16(image.convert('L')) * 16)[1].tobytes()


def floating(image):
    return cv2.imencode('.tif', np.float32(image.convert('L')))[1].tobytes()


@pytest.mark.parametrize(
    ('task', 'spoil', 'words'),
    [
        ('cls', shallow, '16 bits a channel but no value above'),
        ('cls', floating, 'LoadImageFromFile fails on it'),
        ('seg', lambda image: encode(image.crop((0, 0, 1, 1)), 'PNG'), 'one size'),
    ],
    ids=['12-bit', '32-bit', 'one pixel'],
)
def test_file_that_would_train_wrongly_is_named(data, tmp_path, task, spoil, words):
    root = data(task)
    folder = {'cls': root / 'train', 'seg': root / 'images' / 'training'}[task]
    file = min(path for path in folder.rglob('*.*') if path.is_file())
    rewrite(file, spoil)
    line = refused(task, root, tmp_path)
    assert str(file) in line and words in line


def test_label_that_is_no_class_is_named(data, tmp_path):
    root = data('seg')
    file = min((root / 'annotations' / 'training').iterdir())
    labels = np.array(Image.open(file))
    labels[:10] = 200
    cv2.imwrite(str(file), labels)
    line = refused('seg', root, tmp_path)
    assert str(file) in line and 'has label 199 (in the file one more) on 640 pixels' in line


@pytest.mark.parametrize(
    ('task', 'split', 'fields', 'words'),
    [
        ('det', 'train', dict(bbox=[math.nan, 1, 9, 9]), 'nan'),
        ('det', 'val', dict(bbox=[30, 30, -20, 10]), 'negative size'),
        ('det', 'val', dict(segmentation=[[1, 1, 9, 9]]), 'polygon'),
        ('pose', 'train', dict(bbox=[1, 1, math.nan, 9]), 'nan'),
        ('pose', 'val', dict(face_kpts=None), "no 'face_kpts'"),
    ],
)
def test_annotation_that_no_run_can_use_is_named(data, tmp_path, task, split, fields, words):
    root = data(task)
    path, content, _ = annotations(root, task, split)
    faulty = content['annotations'][3]
    faulty.update(fields)
    path.write_text(json.dumps(content))
    line = refused(task, root, tmp_path)
    assert str(path) in line and words in line and f'annotation {faulty["id"]} ' in line
    assert not (tmp_path / 'run').exists()  # before anything is built


def test_annotation_that_no_test_can_use_is_named(data, tmp_path):
    root = data('det')
    path, content, _ = annotations(root, 'det', 'val')
    content['annotations'][3]['bbox'][0] = math.nan
    path.write_text(json.dumps(content))
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'epoch_1.pth').touch()
    with pytest.raises(UserError, match=f'annotation {content["annotations"][3]["id"]} .*nan'):
        score('det', root, tmp_path)


def test_nothing_to_train_on_is_one_line_and_status_1(data, tmp_path, capsys):
    root = data('pose')
    path, content, _ = annotations(root, 'pose', 'train')
    for each in content['annotations']:
        each['num_keypoints'] = 0
    path.write_text(json.dumps(content))
    config = str(CONFIGS / TASKS['pose'][0])
    run = [config, *arguments('pose', root, tmp_path)]
    assert run_tool(lambda _: train(run)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    assert str(path) in lines[0] and 'have no keypoints' in lines[0]
