"""Each library's own config and train script: `custom_imports` is all that ClusTR asks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clustr_mm.datasets.mini.mini import MiniData, build

pytestmark = pytest.mark.long
SINGLE = [
    f'{split}_dataloader.{option}'
    for split in ('train', 'val')
    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
]
FEW = ['train_dataloader.dataset.indices=4', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> dict[str, Path]:
    """A few small scenes in every layout."""
    mini = MiniData(layout='all', train=12, val=10, size=(64, 64))
    return build(tmp_path_factory.mktemp('data') / 'mini', mini)


def train_with(library, base, changes, options, folder):
    """Trains a library's own config, changed as a user changes it, through its own script.

    Returns:
        str: What the run wrote on screen and into its log.
    """
    module = pytest.importorskip(library)
    mim = Path(module.__file__).parent / '.mim'
    config = folder / 'plugged.py'
    config.write_text(
        f"_base_ = '{(mim / 'configs' / base).resolve()}'\n"
        f"custom_imports = dict(imports=['clustr_mm'])\n{changes}"
    )
    result = subprocess.run(
        [sys.executable, str(mim / 'tools/train.py'), str(config), '--cfg-options', *options],
        cwd=folder,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_mmseg(data, tmp_path):
    channels = 'in_channels=[64, 128, 256, 512]'
    printed = train_with(
        'mmseg',
        'upernet/upernet_r18_4xb4-160k_ade20k-512x512.py',
        'model = dict(pretrained=None, '
        "backbone=dict(_delete_=True, type='ClusTR', arch='small'), "
        f'decode_head=dict({channels}), auxiliary_head=dict(in_channels=256))\n',
        [
            'train_cfg.max_iters=2', 'train_cfg.val_interval=2', *SINGLE,
            'model.data_preprocessor.size=(64,64)', 'model.decode_head.channels=32',
            'train_dataloader.dataset.pipeline.2.scale=(128,64)',
            'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
            'val_dataloader.dataset.pipeline.1.scale=(128,64)', 'val_dataloader.batch_size=1',
            f'train_dataloader.dataset.data_root={data["ade20k"]}',
            f'val_dataloader.dataset.data_root={data["ade20k"]}',
        ],
        tmp_path,
    )  # fmt: skip
    assert (tmp_path / 'work_dirs' / 'plugged' / 'iter_2.pth').is_file()
    assert 'mIoU' in printed


def test_mmdet(data, tmp_path):
    printed = train_with(
        'mmdet',
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        "model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='tiny'), "
        'neck=dict(in_channels=[64, 128, 256, 512]))\n',
        [
            *FEW, *SINGLE,
            'train_dataloader.dataset.pipeline.2.scale=(96,96)',
            'val_dataloader.dataset.pipeline.1.scale=(96,96)',
            f'train_dataloader.dataset.data_root={data["coco"]}/',
            f'val_dataloader.dataset.data_root={data["coco"]}/',
            f'val_evaluator.ann_file={data["coco"]}/annotations/instances_val2017.json',
        ],
        tmp_path,
    )  # fmt: skip
    assert (tmp_path / 'work_dirs' / 'plugged' / 'epoch_1.pth').is_file()
    # Nothing is found after two steps; mmdet then says so in place of a table.
    assert 'segm_mAP' in printed or 'The testing results of the whole dataset is empty' in printed


def test_mmpose(data, tmp_path):
    printed = train_with(
        'mmpose',
        'wholebody_2d_keypoint/topdown_heatmap/coco-wholebody/'
        'td-hm_res50_8xb64-210e_coco-wholebody-256x192.py',
        "model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='tiny'), "
        'head=dict(in_channels=512))\n',
        [
            *FEW, *SINGLE,
            f'train_dataloader.dataset.data_root={data["coco_wholebody"]}/',
            f'val_dataloader.dataset.data_root={data["coco_wholebody"]}/',
            'val_dataloader.dataset.bbox_file=None',
            f'val_evaluator.ann_file={data["coco_wholebody"]}/annotations/'
            'coco_wholebody_val_v1.0.json',
        ],
        tmp_path,
    )  # fmt: skip
    assert (tmp_path / 'work_dirs' / 'plugged' / 'epoch_1.pth').is_file()
    assert 'coco-wholebody/AP' in printed


def test_mmpretrain(data, tmp_path):
    def loader(split, pipeline):  # 'ImageNet' would insist on a thousand folders
        return (
            f"{split}_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', "
            f'data_root={str(data["imagenet"])!r}, data_prefix={split!r}, '
            f'pipeline={{{{_base_.{pipeline}}}}}))\n'
        )

    printed = train_with(
        'mmpretrain',
        'resnet/resnet18_8xb32_in1k.py',
        "model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='tiny', out_indices=(3,)), "
        'head=dict(num_classes=10))\n'
        + loader('train', 'train_pipeline')
        + loader('val', 'test_pipeline'),
        [*FEW, *SINGLE],
        tmp_path,
    )
    assert (tmp_path / 'work_dirs' / 'plugged' / 'epoch_1.pth').is_file()
    assert 'accuracy/top1' in printed
