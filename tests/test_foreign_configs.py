"""People's own configs, which our tools must leave as they are: hooks that change a data set while
it is used, data sets in data sets, types that are classes, default hooks of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpose')

from clustr_mm.datasets.mini.mini import MiniData, build
from clustr_mm.engine import UserError, test, train

ROOT = Path(__file__).resolve().parents[1]
test.__test__ = False  # not pytest's


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> dict[str, Path]:
    """A few small scenes in every layout."""
    mini = MiniData(layout='all', train=10, val=10, size=(64, 64))
    return build(tmp_path_factory.mktemp('data') / 'mini', mini)


def fit(folder, config, *options):
    """Trains a config text by our tool."""
    path = folder / f'{folder.name}.py'
    path.write_text(config)
    named = ['--cfg-options', *options] if options else []
    return train([str(path), '--work-dir', str(folder / 'work'), '--device', 'cpu', *named])


def log_of(runner):
    return Path(runner._log_dir, f'{runner.timestamp}.log').read_text()


DETECTOR = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['clustr_mm', 'clustr_mm.engine.samples'])
model = dict(
    backbone=dict(_delete_=True, type='ClusTR', arch='tiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512], out_channels=32, start_level=0, num_outs=5),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
end = [dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{root}/', pipeline=load + [dict(type='RandomFlip', prob=0.5)] + end),
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(max_epochs=3)
default_hooks = dict(checkpoint=dict(save_last=False, interval=9))
custom_hooks = [
    dict(type='PipelineSwitchHook', switch_epoch=2, switch_pipeline=load + end),
    dict(type='BrokenFileHook', action='{action}'),
]
"""


@pytest.fixture(scope='module')
def cut(data, tmp_path_factory):
    """The detection data with one picture that is only a JPEG's head."""
    root = tmp_path_factory.mktemp('cut') / 'coco'
    subprocess.run(['cp', '-r', str(data['coco']), str(root)], check=True)
    picture = min((root / 'train2017').iterdir())
    picture.write_bytes(picture.read_bytes()[:200])
    return root, picture.name


def test_a_damaged_picture_is_treated_alike_before_and_after_a_pipeline_is_switched(cut, tmp_path):
    root, name = cut
    runner = fit(tmp_path, DETECTOR.format(root=root, action='skip'))
    assert runner.epoch == 3
    met = [line for line in log_of(runner).splitlines() if name in line]
    assert met and all('skipped a sample' in line for line in met)


def test_a_damaged_picture_stops_a_run_by_its_name(cut, tmp_path):
    root, name = cut
    with pytest.raises(UserError, match=name) as error:
        fit(tmp_path, DETECTOR.format(root=root, action='raise'))
    assert '\n' not in str(error.value)


POSE = """
_base_ = 'mmpose::body_2d_keypoint/yoloxpose/coco/yoloxpose_tiny_4xb64-300e_coco-416.py'
custom_imports = dict(imports=['clustr_mm'])
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(_delete_=True, type='ClusTR', arch='tiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
stage1, stage2 = _base_.train_pipeline_stage1, _base_.train_pipeline_stage2
stage1[1]['img_scale'] = (64, 64)
for step in stage1 + stage2:
    step.pop('extra_mapping_labels', None)  # mmpose 1.3.2 has no such option
    if 'input_size' in step:
        step['input_size'] = (64, 64)
del step
persons = dict(
    type='CocoDataset', data_mode='bottomup', data_root='{root}/',
    ann_file='annotations/coco_wholebody_train_v1.0.json', data_prefix=dict(img='train2017/'),
    indices=4,
)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(**persons, pipeline=stage1),
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(max_epochs=2, dynamic_intervals=None)
default_hooks = dict(checkpoint=dict(save_best=None, interval=9), logger=dict(interval=1))
custom_hooks = [
    dict(type='YOLOXPoseModeSwitchHook', num_last_epochs=1, new_train_pipeline=stage2, priority=48)
]
"""
COMBINED = """
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(
        _delete_=True, type='CombinedDataset', pipeline=stage2, test_mode=False,
        metainfo=dict(from_file='configs/_base_/datasets/coco.py'),
        datasets=[dict(**persons, pipeline=[]), dict(**persons, pipeline=[])],
    ),
    sampler=dict(_delete_=True, type='MultiSourceSampler', batch_size=2, source_ratio=[1, 1],
                 shuffle=True),
)
custom_hooks = []
"""


@pytest.fixture(scope='module')
def persons(data):
    """The scenes' persons; their first 17 keypoints are COCO's."""
    return data['coco_wholebody']


def test_a_hook_may_change_the_data_set_while_it_is_used(persons, tmp_path):
    assert fit(tmp_path, POSE.replace('{root}', str(persons))).epoch == 2


def test_data_sets_in_a_data_set_with_a_sampler_of_sources(persons, tmp_path):
    config = POSE.replace('{root}', str(persons)) + COMBINED
    assert fit(tmp_path, config).epoch == 2


def test_the_same_with_our_loop(persons, tmp_path):
    config = POSE.replace('{root}', str(persons)) + COMBINED
    config = config.replace("['clustr_mm']", "['clustr_mm', 'clustr_mm.engine.resuming']")
    config += "train_cfg = dict(type='ResumableEpochLoop', max_epochs=2, dynamic_intervals=None)\n"
    assert fit(tmp_path, config).epoch == 2


CLASSES = """
from clustr_mm import ClusTR
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.datasets import ADE20KDataset, LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import CrossEntropyLoss, EncoderDecoder, SegDataPreProcessor, SegformerHead
from torch.optim import AdamW

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(64, 64), seg_pad_val=255),
    backbone=dict(type=ClusTR, arch='tiny'),
    decode_head=dict(
        type=SegformerHead, in_channels=[64, 128, 256, 512], in_index=[0, 1, 2, 3], channels=32,
        num_classes=150, align_corners=False, loss_decode=dict(type=CrossEntropyLoss),
        norm_cfg=dict(type='BN'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations, reduce_zero_label=True),
    dict(type=PackSegInputs),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=ADE20KDataset, data_root='{root}', pipeline=pipeline,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=ADE20KDataset, data_root='{root}', pipeline=pipeline,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type=IoUMetric)
val_evaluator = test_evaluator
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2, val_interval=9)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
default_scope = 'mmseg'
"""


def test_a_config_of_classes_without_default_hooks_trains_and_tests(data, tmp_path):
    root = str(data['ade20k'])
    config = 'from mmengine.config import read_base\n' + CLASSES.replace('{root}', root)
    runner = fit(tmp_path, config)
    assert runner.iter == 2
    (path,) = (tmp_path / 'work').glob('*.pth')
    arguments = [str(tmp_path / f'{tmp_path.name}.py'), str(path), '--device', 'cpu']
    assert 'mIoU' in test([*arguments, '--work-dir', str(tmp_path / 'tested')])


@pytest.mark.long
@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_a_librarys_browse_dataset_runs_on_our_leaf(library, data, tmp_path):
    leaf, layout = dict(
        mmdet=('mask_rcnn_clustr_t_mini.py', 'coco'),
        mmseg=('upernet_clustr_pvtb0_mini.py', 'ade20k'),
    )[library]
    site = Path(pytest.importorskip(library).__file__).parent
    done = subprocess.run(
        [
            *(sys.executable, site / '.mim/tools/analysis_tools/browse_dataset.py'),
            *(ROOT / 'configs' / library / leaf, '--output-dir', tmp_path / 'out', '--not-show'),
            *('--cfg-options', f'train_dataloader.dataset.data_root={data[layout]}'),
            'train_dataloader.dataset.indices=2',
        ],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([path for path in (tmp_path / 'out').rglob('*') if path.is_file()]) == 2


@pytest.mark.slow
def test_mmsegs_own_flop_counter_runs_on_our_leaf(tmp_path):
    site = Path(pytest.importorskip('mmseg').__file__).parent
    tool = site / '.mim/tools/analysis_tools/get_flops.py'
    leaf = ROOT / 'configs/mmseg/upernet_clustr_pvtb0_mini.py'
    done = subprocess.run(
        [sys.executable, tool, leaf, '--shape', '64', '64'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and 'Flops' in done.stdout, done.stderr[-3000:]
