"""Training on a damaged file stops or goes on as the config says, and always says which file."""

import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

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
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmdet.LoadAnnotations'), dict(type='X')]
    once = guard_pipeline(pipeline, 'skip')
    assert [step['type'] for step in once] == ['CheckedLoad', 'CheckedLoad', 'X']
    assert guard_pipeline(once, 'raise') == once
    assert pipeline[0] == dict(type='LoadImageFromFile')


def test_unknown_choice_is_named():
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        load('ignore')


def test_importing_needs_no_task_library_and_no_generator():
    code = (
        'import sys, clustr_mm.datasets; '
        "print([m for m in ('clustr_mm.datasets.scenes', 'mmcv', 'mmdet', 'mmseg', 'mmpose') "
        'if m in sys.modules])'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'
