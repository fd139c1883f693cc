"""Training on a file that cannot be used stops or goes on as the config says, and names it."""

import io
import json
import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest
from encoding import encode
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageOps

from clustr_mm.datasets import DataFileError, guard_pipeline

pytest.importorskip('mmcv.transforms')


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (80, 60))
    paths = {name: str(tmp_path / f'{name}.jpg') for name in ('whole', 'cut', 'text')}
    cv2.imwrite(paths['whole'], image)
    data = open(paths['whole'], 'rb').read()
    open(paths['cut'], 'wb').write(data[: len(data) // 2])
    open(paths['text'], 'w').write('no picture')
    paths['absent'] = str(tmp_path / 'absent.jpg')
    labels = {
        'label': np.ones((60, 80), np.uint8),
        'small_label': np.ones((30, 40), np.uint8),
        'rgb_label': np.ones((60, 80, 3), np.uint8),
    }
    for name, label in labels.items():
        paths[name] = str(tmp_path / f'{name}.png')
        cv2.imwrite(paths[name], label)
    data = open(paths['label'], 'rb').read()
    paths['cut_label'] = str(tmp_path / 'cut_label.png')
    open(paths['cut_label'], 'wb').write(data[:-20])
    return paths


def load(on_error='raise', **loader):
    loader = loader or dict(type='LoadImageFromFile')
    return TRANSFORMS.build(dict(type='CheckedLoad', loader=loader, on_error=on_error))


def test_whole_file_loads_as_without_the_check(files):
    plain = TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=files['whole']))
    checked = load()(dict(img_path=files['whole']))
    assert (plain['img'] == checked['img']).all() and plain.keys() == checked.keys()


@pytest.mark.parametrize(
    ('name', 'words'),
    [('cut', 'truncated'), ('text', 'not an image'), ('absent', 'No such file')],
)
def test_damaged_image_is_named(files, name, words, caplog):
    with pytest.raises(DataFileError) as error:
        load()(dict(img_path=files[name]))
    message = str(error.value)
    assert files[name] in message and words in message and 'on_broken_file=skip' in message
    assert '\n' not in message


def test_skipping_is_never_silent(files):
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('test_skipping', logger_name='test_skipping')
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    assert load('skip')(dict(img_path=files['cut'])) is None
    warnings = [r.getMessage() for r in records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and files['cut'] in warnings[0]


def test_annotations_are_checked(files):
    pytest.importorskip('mmseg.datasets')
    step = load(type='mmseg.LoadAnnotations', reduce_zero_label=True)
    sample = dict(img_path=files['whole'], ori_shape=(60, 80), reduce_zero_label=True)
    sample['seg_fields'] = []
    loaded = step(dict(sample, seg_map_path=files['label']))
    assert (loaded['gt_seg_map'] == 0).all()
    for name, words in (
        ('cut_label', 'truncated'),
        ('small_label', '30x40'),
        ('rgb_label', 'no label map'),
    ):
        with pytest.raises(DataFileError) as error:
            step(dict(sample, seg_fields=[], seg_map_path=files[name]))
        assert files[name] in str(error.value) and words in str(error.value)


def test_training_draws_another_sample(files):
    from mmengine.dataset import BaseDataset

    class Three(BaseDataset):
        def load_data_list(self):
            return [dict(img_path=files[name]) for name in ('whole', 'cut', 'whole')]

    pipeline = guard_pipeline([dict(type='LoadImageFromFile')], 'skip')
    sample = Three(pipeline=pipeline)[1]
    assert sample['img_path'] == files['whole']
    pipeline = guard_pipeline([dict(type='LoadImageFromFile')])
    with pytest.raises(DataFileError, match='cut.jpg'):
        Three(pipeline=pipeline)[1]


def test_error_survives_a_loading_process(files):
    """torch rebuilds a worker's exception from one string; the file's name must come through."""
    import torch.utils.data

    step = load()

    class One(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return step(dict(img_path=files['cut']))

    with pytest.raises(DataFileError, match='cut.jpg'):
        next(iter(torch.utils.data.DataLoader(One(), num_workers=1)))


def test_guarding_twice_is_guarding_once():
    pipeline = [
        dict(type='Mix'),
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadAnnotations'),
        dict(type='X'),
    ]
    once = guard_pipeline(pipeline, 'skip', num_classes=3)
    kinds = [step['type'] for step in once]
    assert kinds == ['Mix', 'CheckedLoad', 'CheckedLoad', 'CheckedStep']
    assert once[2] == dict(type='CheckedLoad', loader=pipeline[2], on_error='skip', num_classes=3)
    assert guard_pipeline(once, 'raise') == once
    assert pipeline[1] == dict(type='LoadImageFromFile')


def test_what_loads_nothing_is_left_alone():
    # A wrapper that mixes samples asks its transforms which ones, and must find them as they are.
    pipeline = [dict(type='Mosaic'), dict(type='Resize')]
    assert guard_pipeline(pipeline) == pipeline


def test_augmented_testing_is_guarded_inside():
    branches = [[dict(type='Resize'), dict(type='Resize')], [dict(type='LoadAnnotations')]]
    pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=branches)]
    guarded = guard_pipeline(pipeline)[1]['transforms']
    kinds = [[step['type'] for step in branch] for branch in guarded]
    assert kinds == [['CheckedStep', 'CheckedStep'], ['CheckedLoad']]


def test_unknown_choice_is_named():
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        load('ignore')


def test_importing_needs_no_task_library_and_no_generator():
    code = (
        'import sys, clustr_mm.datasets; '
        "print([m for m in ('clustr_mm.datasets.mini.scenes', 'mmcv', 'mmdet', 'mmseg', 'mmpose') "
        'if m in sys.modules])'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


def odd_files():
    """By name: a file's content, and the (H, W, 3) RGB picture that it shows."""
    rng = np.random.default_rng(0)
    array = cv2.resize(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), (50, 40))
    image = Image.fromarray(array)
    grey = np.dstack([np.array(image.convert('L'))] * 3)
    palette = image.quantize(64)
    files = {
        'grey jpeg': (encode(image.convert('L'), 'JPEG'), grey),
        'grey png': (encode(image.convert('L'), 'PNG'), grey),
        'cmyk jpeg': (encode(image.convert('CMYK'), 'JPEG', quality=95), array),
        'cmyk tiff': (encode(image.convert('CMYK'), 'TIFF'), array),
        '16-bit png': (cv2.imencode('.png', np.uint16(array[..., ::-1]) * 257)[1], array),
        '16-bit grey png': (cv2.imencode('.png', np.uint16(grey[..., 0]) * 257)[1], grey),
        '16-bit tiff': (cv2.imencode('.tif', np.uint16(array[..., ::-1]) * 257)[1], array),
        'alpha png': (encode(image.convert('RGBA'), 'PNG'), array),
        'palette png': (encode(palette, 'PNG'), np.array(palette.convert('RGB'))),
    }
    for orientation in range(2, 9):
        exif = image.getexif()
        exif[0x0112] = orientation
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(image, 'PNG', exif=exif))))
        data = encode(image, 'JPEG', quality=95, exif=exif)
        files[f'exif {orientation}'] = (data, np.array(upright))
    return files


@pytest.mark.parametrize(('data', 'picture'), odd_files().values(), ids=list(odd_files()))
def test_odd_files_load_as_what_they_show(tmp_path, data, picture):
    path = tmp_path / 'odd.jpg'
    path.write_bytes(bytes(data))
    loaded = load()(dict(img_path=str(path)))['img'][..., ::-1]
    assert loaded.shape == picture.shape
    assert np.abs(loaded.astype(int) - picture).mean() < 4


def test_decoder_that_cuts_16_bits_off_is_refused(tmp_path):
    path = tmp_path / 'deep.png'
    path.write_bytes(bytes(odd_files()['16-bit grey png'][0]))
    step = load(type='LoadImageFromFile', imdecode_backend='pillow')
    with pytest.raises(DataFileError, match=r"deep\.png .* imdecode_backend='cv2'"):
        step(dict(img_path=str(path)))


def test_picture_of_another_size_than_its_annotations_is_named(files, tmp_path):
    assert load()(dict(img_path=files['whole'], height=60, width=80))
    with pytest.raises(DataFileError, match='60x80 .* made for 30x80: bring back'):
        load()(dict(img_path=files['whole'], height=30, width=80))
    with pytest.raises(DataFileError, match='made for 80x60: is it turned by its EXIF tag'):
        load()(dict(img_path=files['whole'], height=80, width=60))

    # mmpose's samples bring their data set along instead.
    class Poses:
        ann_file = str(tmp_path / 'poses.json')

    image = dict(id=3, file_name='whole.jpg', height=60, width=99)
    (tmp_path / 'poses.json').write_text(json.dumps(dict(images=[image])))
    assert load()(dict(img_path=files['whole'], img_id=4, dataset=Poses()))
    with pytest.raises(DataFileError, match='made for 60x99'):
        load()(dict(img_path=files['whole'], img_id=3, dataset=Poses()))


def test_keypoints_outside_the_picture_are_not_visible(files):
    places = [(0, 0), (80, 60), (-1, 5), (81, 5), (5, 60.5), (1e300, 5), (40, 30)]
    sample = dict(
        img_path=files['whole'], keypoints=np.array([places]), keypoints_visible=np.ones((1, 7))
    )
    assert load()(sample)['keypoints_visible'].tolist() == [[1, 1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ('encode', 'words'),
    [
        (lambda labels: cv2.imencode('.jpg', labels), 'is a JPEG, which blurs labels'),
        (lambda labels: cv2.imencode('.tiff', labels + np.float32(0.5)), 'has 32 bits a channel'),
        # mmseg: 'numpy.uint8' object does not support item assignment
        (lambda labels: cv2.imencode('.png', labels[:1, :1]), 'LoadAnnotations fails on it'),
    ],
)
def test_label_map_that_loads_as_other_labels_is_named(files, tmp_path, encode, words):
    pytest.importorskip('mmseg.datasets')
    path = str(tmp_path / 'labels.png')
    open(path, 'wb').write(encode(np.full((60, 80), 3, np.uint8))[1].tobytes())
    loader = dict(type='mmseg.LoadAnnotations', reduce_zero_label=True)
    sample = dict(
        img_path=files['whole'], seg_map_path=path, seg_fields=[], reduce_zero_label=True,
        label_map=None,
    )  # fmt: skip
    with pytest.raises(DataFileError) as error:
        load(**loader)(sample)
    assert str(error.value).startswith(f'{path}') and words in str(error.value)


def test_labels_that_are_no_class_are_named(files, tmp_path):
    pytest.importorskip('mmseg.datasets')
    labels = np.full((60, 80), 3, np.uint8)
    labels[:2] = 255
    path = str(tmp_path / 'labels.png')
    cv2.imwrite(path, labels)

    def sample(**more):
        return dict(
            img_path=files['whole'], seg_map_path=path, ori_shape=(60, 80), seg_fields=[],
            reduce_zero_label=False, **more,
        )  # fmt: skip

    def step(**more):
        loader = dict(type='mmseg.LoadAnnotations')
        return TRANSFORMS.build(dict(type='CheckedLoad', loader=loader, **more))

    for num_classes in (None, 4):
        assert step(num_classes=num_classes)(sample())
    with pytest.raises(DataFileError, match='labels.png has label 3 on 4640 pixels.* 3 classes'):
        step(num_classes=3)(sample())
    # A data set that maps its labels says by itself how many there are.
    assert step()(sample(label_map={0: 255, 3: 1, 2: 0}))
    with pytest.raises(DataFileError, match='has label 3 .* 2 classes'):
        step()(sample(label_map={0: 1, 1: 0}))
    cv2.imwrite(path, labels.astype(np.uint16) + 256)
    with pytest.raises(DataFileError, match='labels.png has label 511: '):
        step()(sample())


@TRANSFORMS.register_module()
class FailsOnEven:
    """A transform that cannot take every second sample."""

    def __call__(self, results):
        if results['number'] % 2 == 0:
            raise ArithmeticError('cannot halve\n  it')
        return results


@pytest.mark.parametrize('wrapped', ['transform', 'loader'])
def test_sample_that_a_transform_fails_on_is_named(wrapped):
    kind = {'transform': 'CheckedStep', 'loader': 'CheckedLoad'}[wrapped]
    cfg = {'type': kind, wrapped: dict(type='FailsOnEven')}
    step = TRANSFORMS.build(cfg)
    sample = dict(img_path='a.jpg', img=np.zeros((2, 2, 3), np.uint8), number=2, id=11)
    assert step({**sample, 'number': 1})['number'] == 1
    with pytest.raises(DataFileError) as error:
        step(sample)
    message = str(error.value)
    assert message.startswith('a.jpg (annotation 11): FailsOnEven fails on it (ArithmeticError: ')
    assert '\n' not in message and isinstance(error.value.__cause__, ArithmeticError)
    assert TRANSFORMS.build({**cfg, 'on_error': 'skip'})(sample) is None
    # Without a file to name, the error stays what it is.
    with pytest.raises(ArithmeticError):
        step(dict(number=2))
