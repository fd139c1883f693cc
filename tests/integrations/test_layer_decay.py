"""Layer-wise learning-rate decay: rates by depth, no decay where none belongs, all libraries."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import clustr_mm  # noqa: F401 - registers
from clustr_mm import ClusTR

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LR, DECAY, RATE = 1e-3, 0.05, 0.8


def optimizer_of(model, **paramwise):
    wrapper = dict(
        type='OptimWrapper',
        constructor='ClusTRLayerDecay',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        paramwise_cfg=dict(layer_decay_rate=RATE, **paramwise),
    )
    return build_optim_wrapper(model, wrapper).optimizer


def settings_of(model, optimizer):
    """Learning rate and weight decay of every parameter, by name."""
    groups = [
        (parameter, group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    ]
    by_id = {id(parameter): (lr, decay) for parameter, lr, decay in groups}
    assert len(by_id) == len(groups), 'a parameter is in two groups'
    return {
        name: by_id[id(parameter)]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.backbone = ClusTR('tiny', **options)
        self.head = nn.Sequential(nn.Conv2d(512, 8, 1), nn.BatchNorm2d(8))


def test_rates_by_depth():
    model = Model()
    settings = settings_of(model, optimizer_of(model))
    # 1 + 2 + 6 + 1 blocks; the head is layer 11
    expected = {
        'stages.0.patch_embed.proj.weight': 0, 'stages.0.blocks.0.attn.q.weight': 1,
        'stages.0.norm.weight': 1, 'stages.1.patch_embed.norm.bias': 2,
        'stages.1.blocks.0.mlp.fc1.weight': 2, 'stages.1.blocks.1.attn.kvs.1.weight': 3,
        'stages.1.norm.bias': 3, 'stages.2.patch_embed.proj.weight': 4,
        'stages.2.blocks.5.norm1.weight': 9, 'stages.3.patch_embed.proj.weight': 10,
        'stages.3.blocks.0.attn.proj.bias': 10, 'stages.3.norm.weight': 10,
    }  # fmt: skip
    for name, layer in expected.items():
        assert settings[f'backbone.{name}'][0] == pytest.approx(LR * RATE ** (11 - layer)), name
    assert {settings[f'head.{n}'][0] for n in ('0.weight', '0.bias', '1.weight')} == {LR}


def test_rates_never_fall_from_the_image_to_the_head():
    model = Model()
    settings = settings_of(model, optimizer_of(model))
    rates = [lr for name, (lr, _) in settings.items() if name.startswith('backbone')]
    assert rates == sorted(rates) and len(set(rates)) == 11
    assert max(rates) < LR


def test_norms_and_biases_do_not_decay_and_all_else_does():
    model = Model()
    settings = settings_of(model, optimizer_of(model))
    norms = {
        f'{name}.{part}'
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for part in ('weight', 'bias')
    }
    for name, (_, decay) in settings.items():
        assert decay == (0 if name in norms or name.endswith('.bias') else DECAY), name


def test_the_first_group_has_the_configs_rate_and_groups_are_few():
    groups = optimizer_of(Model()).param_groups
    assert groups[0]['lr'] == LR
    assert len(groups) == 2 * 12  # layers, with decay and without


def test_mmengines_rules_hold_as_well():
    model = Model(frozen_stages=0)
    keys = {'head.0': dict(lr_mult=10), 'attn.q': dict(lr_mult=2)}
    optimizer = optimizer_of(model, norm_decay_mult=1.0, custom_keys=keys)
    settings = settings_of(model, optimizer)
    assert settings['head.0.weight'] == (pytest.approx(10 * LR), DECAY)
    query = settings['backbone.stages.3.blocks.0.attn.q.weight'][0]
    assert query == pytest.approx(2 * LR * RATE)
    assert settings['backbone.stages.3.norm.weight'][1] == DECAY
    trained = sum(len(group['params']) for group in optimizer.param_groups)
    assert trained == sum(parameter.requires_grad for parameter in model.parameters())


def test_a_step_moves_deep_layers_less():
    torch.manual_seed(0)
    model = ClusTR('tiny')
    optimizer = optimizer_of(model, bias_decay_mult=0.0)
    watched = model.stages[0].patch_embed.proj.weight, model.stages[3].blocks[0].mlp.fc1.weight
    before = [each.detach().clone() for each in watched]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    first, last = ((now - then).abs().mean() for now, then in zip(watched, before, strict=True))
    assert (first / last).item() == pytest.approx(RATE**10, rel=0.05)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpose', 'mmpretrain'])
def test_each_librarys_mini_config_builds_with_it(library):
    pytest.importorskip(library)
    cfg = Config.fromfile(str(next((CONFIGS / library).glob('*_mini.py'))))
    wrapper = dict(cfg.optim_wrapper)
    wrapper |= dict(constructor='ClusTRLayerDecay', paramwise_cfg=dict(layer_decay_rate=RATE))
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, wrapper).optimizer
    settings = settings_of(model, optimizer)
    lr = cfg.optim_wrapper.optimizer.lr
    assert set(settings) == {n for n, p in model.named_parameters() if p.requires_grad}
    rates = [each for name, (each, _) in settings.items() if name.startswith('backbone.')]
    layers = sum(len(stage.blocks) for stage in model.backbone.stages)
    assert rates == sorted(rates) and rates[0] == pytest.approx(lr * RATE ** (layers + 1))
    assert {each for name, (each, _) in settings.items() if not name.startswith('backbone.')} == {
        lr
    }


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9'])
def test_a_rate_out_of_range_is_refused(rate):
    wrapper = dict(
        constructor='ClusTRLayerDecay',
        optimizer=dict(type='AdamW', lr=LR),
        paramwise_cfg=dict(layer_decay_rate=rate),
    )
    with pytest.raises(ValueError, match='layer_decay_rate is'):
        build_optim_wrapper(Model(), wrapper)


def test_a_model_without_clustr_is_refused():
    with pytest.raises(ValueError, match='Linear has 0 ClusTR backbones'):
        optimizer_of(nn.Linear(2, 2))
