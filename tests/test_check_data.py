"""tools/check_data.py: lines, exit status, and people's own data of odd kinds."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
import tifffile
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend

from clustr_mm.datasets.audit import audit
from clustr_mm.datasets.check import check_paths
from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.engine import UserError

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools' / 'check_data.py'


@pytest.mark.slow
def test_a_line_a_fault_and_status_1(tmp_path):
    root = build(tmp_path / 'mini', MiniData('imagenet', 20, 20, (64, 64)))['imagenet']
    folder = min((root / 'train').iterdir())
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    config = ROOT / 'configs' / 'mmpretrain' / 'clustr_t_mini.py'
    command = [sys.executable, TOOL, config, '--data-root', root]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    count, lone = (line for line in done.stdout.splitlines() if line.startswith('fault: '))
    assert 'num_classes of LinearClsHead is 10' in count and '9 classes' in count
    assert f'different classes ({folder.name} in one only)' in lone
    assert done.stderr.splitlines()[-1].startswith('error: 2 faults in the data')
    assert 'Traceback' not in done.stderr
    with pytest.raises(UserError, match='set one of them'):
        runpy.run_path(str(TOOL))['main']([str(config), '--cfg-options', 'train_cfg=3'])


def seg_config(folder, classes, **dataset):
    """A config that reads images and label maps below a folder."""
    data = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        seg_map_suffix='.png',
        metainfo=dict(classes=classes),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        **dataset,
    )
    return Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=data)))


def test_tiff_of_many_bands_is_read_by_the_configs_own_backend(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    for i in range(4):
        bands = rng.integers(0, 3000, (16, 16, 8)).astype(np.uint16)
        tifffile.imwrite(tmp_path / 'images' / f'{i}.tif', bands, photometric='minisblack')
        cv2.imwrite(str(tmp_path / 'labels' / f'{i}.png'), np.eye(16, dtype=np.uint8))
    load = dict(type='LoadImageFromFile', imdecode_backend='tifffile', color_type='unchanged')
    steps = [load, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    cfg = seg_config(tmp_path, ('field', 'water'), img_suffix='.tif', pipeline=steps)
    assert list(audit(cfg, decode=True)) == [f'train: BaseSegDataset: 4 images, {tmp_path}']
    broken = tmp_path / 'images' / '2.tif'
    broken.write_bytes(broken.read_bytes()[:20])
    _, line = audit(cfg, decode=True)
    assert line.startswith(f'fault: {broken} ')


def test_list_of_persons_is_no_coco_file(tmp_path):
    """MPII's own annotations are a list."""
    (tmp_path / 'images').mkdir()
    persons = []
    for i in range(3):
        cv2.imwrite(str(tmp_path / 'images' / f'{i}.jpg'), np.full((60, 80, 3), 99, np.uint8))
        person = dict(image=f'{i}.jpg', scale=0.3, center=[40.0, 30.0], joints_vis=[1] * 16)
        persons.append(dict(person, joints=[[30.0, 20.0]] * 16))
    (tmp_path / 'train.json').write_text(json.dumps(persons))
    data = dict(
        type='MpiiDataset',
        data_root=str(tmp_path),
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        pipeline=[dict(type='LoadImage'), dict(type='PackPoseInputs')],
    )
    cfg = Config(dict(default_scope='mmpose', train_dataloader=dict(dataset=data)))
    check_paths(cfg)
    assert len(list(audit(cfg, decode=True))) == 1
    (tmp_path / 'images' / '1.jpg').unlink()
    _, line = audit(cfg)
    assert line.startswith(f'fault: {tmp_path / "images" / "1.jpg"} ')


def test_folder_that_nobody_reads_may_be_missing(tmp_path):
    """mmdet's Mask2Former for instances keeps the panoptic folder of its base."""
    root = build(tmp_path / 'mini', MiniData('coco', 10, 10, (64, 64)))['coco']
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)]
    data = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
        metainfo=dict(classes=('person',)),
        pipeline=steps,
    )
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=data)))
    check_paths(cfg)
    assert len(list(audit(cfg, decode=True))) == 1


class Mapped(LocalBackend):
    """A file backend whose paths are on no disk, as petrel's with a path_mapping."""

    def __init__(self, root):
        self.root = root

    def get(self, filepath):
        return super().get(f'{self.root}/{filepath}')

    def list_dir_or_file(self, dir_path, *options):
        return super().list_dir_or_file(f'{self.root}/{dir_path}', *options)


def test_files_behind_a_backend_are_read_through_it(tmp_path):
    register_backend('mapped', Mapped, force=True)
    for name in ('images', 'labels'):
        (tmp_path / 'there' / name).mkdir(parents=True)
        for i in range(3):
            path = tmp_path / 'there' / name / f'{i}.png'
            cv2.imwrite(str(path), np.eye(16, dtype=np.uint8) * (1 if name == 'labels' else 255))
    backend = dict(backend='mapped', root=str(tmp_path))
    load = [dict(type=t, backend_args=backend) for t in ('LoadImageFromFile', 'LoadAnnotations')]
    cfg = seg_config('there', ('no', 'yes'), img_suffix='.png', backend_args=backend, pipeline=load)
    check_paths(cfg)
    assert list(audit(cfg, decode=True)) == ['train: BaseSegDataset: 3 images, there']
    (tmp_path / 'there' / 'images' / '1.png').write_bytes(b'')
    (tmp_path / 'there' / 'labels' / '2.png').write_bytes(b'x')
    _, image, labels = audit(cfg, decode=True)
    assert image == 'fault: there/images/1.png is empty (0 bytes)'
    assert labels.startswith('fault: there/labels/2.png ')
