"""Every leaf config says what its recipe says, and builds what it says."""

import ast
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from recipes import assert_decay_spares, is_head

from clustr_mm import ClusTR

FOLDER = Path(__file__).resolve().parents[1] / 'configs'
LEAVES = sorted(path for path in FOLDER.glob('*/*.py') if path.parent.name != '_base_')
SEGMENTATION = [path for path in LEAVES if path.parent.name == 'mmseg' and not is_head(path)]
ADE = [path for path in SEGMENTATION if path.stem.endswith('ade20k')]
ARCHS = dict(t='tiny', s='small', b='base', pvtb2='pvt_v2_b2')

each_leaf = pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)


def build(cfg):
    mmseg = pytest.importorskip('mmseg.utils')
    mmseg.register_all_modules(init_default_scope=False)
    init_default_scope('mmseg')
    from mmseg.registry import MODELS

    return MODELS.build(cfg.model)


@each_leaf
def test_leaf_loads_from_anywhere_and_stands_alone(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if is_head(path):  # over its library's own config
        pytest.importorskip(path.parent.name)
    cfg = Config.fromfile(str(path))
    assert cfg.model.backbone.type == 'ClusTR'
    assert 'clustr_mm' in cfg.custom_imports.imports
    if not is_head(path):
        files = [path, *FOLDER.glob('_base_/[!m]*/*.py'), *FOLDER.glob('_base_/models/*.py')]
        for text in (file.read_text() for file in files):
            assert '::' not in text, 'a leaf needs no other distribution to be readable'


@each_leaf
def test_leaf_says_its_command_and_what_to_expect(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f'configs/{path.parent.name}/{path.name}' in docstring
    for heading in ('Run:', 'Schedule:', 'Expected:'):
        assert heading in docstring
    statements = ast.parse(path.read_text()).body
    targets = {ast.unparse(each) for node in statements for each in getattr(node, 'targets', ())}
    assert '_base_' in targets


@pytest.mark.parametrize('path', ADE, ids=lambda path: path.stem)
def test_ade20k_leaves_are_the_recipe(path):
    cfg = Config.fromfile(str(path))
    head, _, variant, _ = path.stem.split('_')
    optimizer, schedule = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert optimizer.type == 'AdamW'
    assert cfg.model.backbone.arch == ARCHS[variant]
    assert cfg.model.data_preprocessor['size'] == (512, 512)
    assert cfg.model.decode_head.num_classes == 150
    # Eight GPUs make the recipe's batch.
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
    drop_path = cfg.model.backbone.drop_path_rate
    if head == 'semfpn':
        assert drop_path == dict(t=0.1, s=0.15, b=0.3, pvtb2=0.15)[variant]
        assert (optimizer.lr, optimizer.weight_decay) == (2e-4, 1e-4)
        assert (cfg.auto_scale_lr.base_batch_size, cfg.train_cfg.max_iters) == (32, 40000)
        assert [(each.type, each.power) for each in schedule] == [('PolyLR', 0.9)]
        assert (cfg.model.neck.out_channels, cfg.model.decode_head.channels) == (256, 128)
    else:
        assert drop_path == dict(t=0.1, s=0.3, b=0.3, pvtb2=0.3)[variant]
        assert (optimizer.lr, optimizer.weight_decay) == (6e-5, 0.01)
        assert (cfg.auto_scale_lr.base_batch_size, cfg.train_cfg.max_iters) == (16, 160000)
        assert (schedule[0].type, schedule[0].end) == ('LinearLR', 1500)
        assert (schedule[1].type, schedule[1].power) == ('PolyLR', 1.0)
    assert schedule[-1].end == cfg.train_cfg.max_iters


@pytest.mark.parametrize('path', SEGMENTATION, ids=lambda path: path.stem)
def test_segmentation_leaf_builds_and_learns_a_step(path):
    cfg = Config.fromfile(str(path))
    model = build(cfg)
    channels = list(model.backbone.channels)
    assert isinstance(model.backbone, ClusTR)
    taker = cfg.model.get('neck') or cfg.model.decode_head
    assert list(taker.in_channels) == channels
    if auxiliary := cfg.model.get('auxiliary_head'):
        assert auxiliary.in_channels == channels[auxiliary.in_index]

    assert_decay_spares(cfg, model, norms=path.stem.startswith('upernet'))

    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = revert_sync_batchnorm(model)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 11, (1, 64, 64)))
        samples.append(sample)
    losses = model.loss(torch.randn(2, 3, 64, 64), samples)
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    lacking = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and value.grad is None
    ]
    assert not lacking
