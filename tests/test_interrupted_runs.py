"""Every library's mini run: resumed exactly, guarded against NaN.

Steps of real models on a few drawn pictures; the same with toys, and faster, is in
engine/test_resuming.py and engine/test_numerics.py.
"""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpose')
pytest.importorskip('mmpretrain')

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from clustr_mm.datasets.mini.mini import MiniData, build
from clustr_mm.engine import UserError, train

pytestmark = pytest.mark.long
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Layout, config, and the side of a picture.
TASKS = {
    'segmentation': ('ade20k', 'mmseg/upernet_clustr_pvtb0_mini.py', 64),
    'detection': ('coco', 'mmdet/mask_rcnn_clustr_t_mini.py', 64),
    'pose': ('coco_wholebody', 'mmpose/topdown_clustr_t_mini.py', 128),
    'classification': ('imagenet', 'mmpretrain/clustr_t_mini.py', 64),
}
OPTIONS = [
    'train_dataloader.batch_size=2', 'model.backbone.drop_path_rate=0.3', 'log_level=WARNING',
    'default_hooks.checkpoint.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=9',
    'default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.save_best=None',
    'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
]  # fmt: skip
_RUNS = itertools.count()


@HOOKS.register_module()
class PoisonHook(Hook):
    """Makes a picture of some steps one of NaN."""

    priority = 'VERY_HIGH'

    def __init__(self, steps):
        self.steps = steps

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.steps:
            images = [image.float() for image in data_batch['inputs']]
            images[0].fill_(torch.nan)
            # mmpretrain's loaders stack them.
            stacked = isinstance(data_batch['inputs'], torch.Tensor)
            data_batch['inputs'] = torch.stack(images) if stacked else images


@pytest.fixture(scope='module', params=TASKS)
def arguments(request, tmp_path_factory):
    """A command line of four steps, in the middle of epochs of three where there are epochs."""
    layout, config, side = TASKS[request.param]
    mini = MiniData(layout=layout, train=20, val=10, size=(side, side))
    root = build(tmp_path_factory.mktemp('data') / layout, mini)[layout]
    steps = ['train_cfg.max_epochs=2', 'train_dataloader.num_batch_per_epoch=2']
    if request.param == 'segmentation':
        steps = ['train_cfg.max_iters=4', 'model.data_preprocessor.size=(64,64)']

    def make(folder, workers, *more):
        return [
            *(str(CONFIGS / config), '--data-root', str(root), '--work-dir', str(folder)),
            *('--device', 'cpu', '--cfg-options', f'experiment_name=run{next(_RUNS)}'),
            *(f'train_dataloader.num_workers={workers}', *OPTIONS, *steps, *more),
        ]

    return make


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(arguments, workers, tmp_path):
    train(arguments(tmp_path / 'whole', 0))
    (tmp_path / 'left').mkdir()
    shutil.copy(tmp_path / 'whole' / 'iter_3.pth', tmp_path / 'left')
    train([*arguments(tmp_path / 'left', workers), 'resume=True'])
    one, other = (
        torch.load(tmp_path / name / 'iter_4.pth', weights_only=False)['state_dict']
        for name in ('whole', 'left')
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_picture_of_nan_spoils_nothing_and_is_named(arguments, tmp_path):
    poison = 'default_hooks.poison.type=PoisonHook', 'default_hooks.poison.steps=[1,2]'
    options = [*arguments(tmp_path, 0), 'default_hooks.numerics_guard.stop_after=2']
    with pytest.raises(UserError, match='2 such steps in a row') as error:
        train([*options, *poison])
    weights = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    assert 'its batch: /' in str(error.value)
