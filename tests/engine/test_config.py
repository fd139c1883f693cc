"""What the command line's options make of a config."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from clustr_mm import ClusTR
from clustr_mm.engine import UserError
from clustr_mm.engine.config import (
    check_keys,
    clustr_backbone,
    library_of,
    load_config,
    set_data_root,
    use_amp,
    use_init_from,
)
from clustr_mm.weights.files import CheckpointError

CONFIGS = os.path.join(os.path.dirname(__file__), '..', '..', 'configs')


def pose_like() -> Config:
    """A config with every kind of path: joined ones, and whole ones beside them."""
    dataset = dict(
        type='CocoWholeBodyDataset',
        data_root='data/coco/',
        ann_file='annotations/val.json',
        bbox_file='data/coco/person_detection_results/boxes.json',
        data_prefix=dict(img='val2017/'),
    )
    return Config(
        dict(
            data_root='data/coco/',
            model=dict(type='X'),
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(dataset))),
            val_dataloader=dict(dataset=dict(dataset)),
            val_evaluator=[dict(type='M', ann_file='data/coco/annotations/val.json')],
            work_dir='data/coco/runs',
        )
    )


def test_data_root_reaches_every_path_and_nothing_else():
    cfg = pose_like()
    set_data_root(cfg, '/big/coco')
    assert cfg.train_dataloader.dataset.dataset.data_root == '/big/coco'
    assert cfg.val_dataloader.dataset.data_root == '/big/coco'
    boxes = '/big/coco/person_detection_results/boxes.json'
    assert cfg.val_dataloader.dataset.bbox_file == boxes
    assert cfg.train_dataloader.dataset.dataset.bbox_file == boxes
    assert cfg.val_evaluator[0].ann_file == '/big/coco/annotations/val.json'
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/val.json'
    assert cfg.work_dir == 'data/coco/runs'


def test_data_root_does_not_touch_a_folder_whose_name_only_begins_alike():
    cfg = pose_like()
    cfg.val_evaluator[0].ann_file = 'data/coco_wholebody/annotations/val.json'
    set_data_root(cfg, '/big')
    assert cfg.val_evaluator[0].ann_file == 'data/coco_wholebody/annotations/val.json'


def test_data_root_of_two_folders_is_refused():
    cfg = pose_like()
    cfg.val_dataloader.dataset.data_root = 'elsewhere'
    with pytest.raises(UserError, match='2 folders'):
        set_data_root(cfg, '/big')


def test_data_root_where_there_is_none_is_refused():
    with pytest.raises(UserError, match='no data_root'):
        set_data_root(Config(dict(model=dict())), '/big')


@pytest.mark.parametrize(
    ('key', 'hint'),
    [
        ('trian_cfg.max_iters', 'train_cfg'),
        ('model.bakbone.arch', 'backbone'),
        ('val_evaluator.3.ann_file', 'list of 1'),
        ('train_cfg', 'set one of them'),
        ('model.backbone', 'set one of them'),
        ('train_cfg.max_iters.x', 'is 1, without keys'),
    ],
)
def test_mistyped_option_is_refused_with_the_mend(key, hint):
    cfg = pose_like()
    cfg.train_cfg = dict(max_iters=1)
    cfg.model.backbone = dict(type='ClusTR')
    with pytest.raises(UserError, match=hint) as error:
        check_keys(cfg, {key: 1})
    assert key in str(error.value)


@pytest.mark.parametrize(
    'key',
    [
        'model.backbone.with_cp',  # an argument that the config leaves at its default
        'train_dataloader.dataset.dataset.indices',
        'val_evaluator.0.ann_file',
        'find_unused_parameters',
        'optim_wrapper.clip_grad.max_norm',
        'randomness.seed',
        'model_wrapper_cfg.type',
        'my_flag',  # of a config's own
    ],
)
def test_option_that_something_reads_is_let_through(key):
    cfg = pose_like()
    cfg.model.backbone = dict(type='ClusTR')
    cfg.optim_wrapper = dict(type='OptimWrapper')
    check_keys(cfg, {key: 1})


def test_a_part_may_be_taken_away():
    cfg = pose_like()
    check_keys(cfg, {'model': None, 'val_evaluator': None})


def test_mistyped_config_names_the_near_ones():
    with pytest.raises(UserError, match='upernet_clustr_s_ade20k.py'):
        load_config(os.path.join(CONFIGS, 'mmseg', 'upernet_clustr_m_ade20k.py'))
    with pytest.raises(UserError, match='upernet_clustr_s_ade20k.py'):
        load_config(os.path.join(CONFIGS, 'mmsegm', 'upernet_clustr_s_ade20k.py'))


def test_config_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('model = dict(\n')
    with pytest.raises(UserError, match='broken.py'):
        load_config(str(path))


def test_what_version_0_1_read_says_what_does_it_now(tmp_path):
    path = tmp_path / 'old.py'
    path.write_text("on_broken_file = 'skip'\n")
    with pytest.raises(UserError, match=r"on_broken_file is version 0.1's; use custom_hooks="):
        load_config(str(path))
    with pytest.raises(UserError, match=r'--cfg-options: numerics_guard is .*; use default_hooks'):
        check_keys(Config(), {'numerics_guard.stop_after': 3})


def test_amp_on_a_cpu_is_refused():
    with pytest.raises(UserError, match='needs a GPU'):
        use_amp(Config(dict(optim_wrapper=dict(type='OptimWrapper'))), 'cpu')


def test_amp_knows_the_wrapper_as_a_class():
    cfg = Config(dict(optim_wrapper=dict(type=OptimWrapper, clip_grad=dict(max_norm=1))))
    use_amp(cfg, 'cuda')
    assert cfg.optim_wrapper.type == 'OptimWrapper', 'the only one that mmseg takes'
    assert cfg.optim_wrapper.clip_grad.max_norm == 1


def test_the_library_is_the_default_scope_or_where_the_model_comes_from():
    assert library_of(Config(dict(default_scope='mmpose', model=dict(type='mmdet.X')))) == 'mmpose'
    assert library_of(Config(dict(model=dict(type='mmdet.FCOS')))) == 'mmdet'
    segmentor = pytest.importorskip('mmseg.models').EncoderDecoder
    assert library_of(Config(dict(model=dict(type=segmentor)))) == 'mmseg'
    with pytest.raises(UserError, match='default_scope'):
        library_of(Config(dict(model=dict(type='X'))))


def test_a_backbone_may_be_given_as_a_class():
    assert clustr_backbone(Config(dict(model=dict(backbone=dict(type=ClusTR, arch='tiny')))))
    with pytest.raises(UserError, match='no model with the backbone ClusTR'):
        clustr_backbone(Config(dict(model=dict(backbone=dict(type='ResNet')))))


def test_a_foreign_backbone_starts_from_all_of_its_weights(tmp_path):
    resnet = pytest.importorskip('mmpretrain.models').ResNet
    path = str(tmp_path / 'a.pth')
    weights = {f'backbone.{k}': v for k, v in resnet(18).state_dict().items()}

    def start(changes):
        torch.save(dict(state_dict={**weights, **changes}), path)
        backbone = dict(type='ResNet', depth=18)
        model = dict(type='ImageClassifier', backbone=backbone)
        cfg = Config(dict(default_scope='mmpretrain', model=model))
        use_init_from(cfg, path)
        return cfg

    with pytest.warns(UserWarning, match='has 1 keys that this ResNet does not have: more'):
        made = start({'backbone.more': torch.ones(1)})
    assert made.init_from == path and made.model.backbone.init_cfg is None
    with pytest.raises(CheckpointError, match='1 shapes differ: conv1.weight is'):
        start({'backbone.conv1.weight': torch.ones(1)})
    del weights['backbone.conv1.weight']
    with pytest.raises(CheckpointError, match='1 keys missing: conv1.weight'):
        start({})
