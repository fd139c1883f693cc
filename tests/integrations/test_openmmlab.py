"""The backbone in mmengine's registries: how it is found, initialised and trained."""

import subprocess
import sys

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, Registry
from mmengine.runner import Runner
from small import NARROW

import clustr_mm
from clustr_mm import ClusTR, models


def test_registered_once_and_seen_by_every_child_registry():
    assert MODELS.get('ClusTR') is ClusTR is clustr_mm.ClusTR
    assert issubclass(ClusTR, models.ClusTR)
    child = Registry('child', parent=MODELS, scope='a_task_library')
    assert child.get('ClusTR') is ClusTR


def test_the_import_brings_no_engine_no_data_sets_and_no_opencv():
    code = (
        'import mmengine.registry, sys\n'
        'before = set(sys.modules)\n'
        'import clustr_mm\n'
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('clustr_mm.')))\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    imported, ours = done.stdout.splitlines()
    assert not {'cv2', 'timm', 'triton'} & set(imported.split())
    rooms = {name.split('.')[1] for name in ours.split()}
    assert rooms == {'integrations', 'models', 'ops'}
    of_others = [name for name in ours.split() if name.startswith('clustr_mm.integrations.')]
    assert of_others == ['clustr_mm.integrations.openmmlab']


@pytest.mark.slow
@pytest.mark.parametrize(
    'before',
    ["import sys; sys.modules['mmengine'] = None", 'import mmengine.registry'],
    ids=['without', 'with'],
)
def test_the_import_costs_at_most_three_tenths_of_a_second(before):
    """Of CPU time, above torch's and, where mmengine is, its registry's."""
    code = (
        f'import time, torch\n{before}\nstart = time.process_time()\n'
        'import clustr_mm\nprint(time.process_time() - start)\n'
    )
    costs = [
        float(subprocess.run([sys.executable, '-c', code], capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(costs) < 0.3


class Toy(BaseModel):
    """A backbone that is trained as a library trains it."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone = ClusTR(arch=NARROW, **options)

    def forward(self, inputs, mode='loss'):
        return dict(loss=sum(m.square().mean() for m in self.backbone(inputs)))

    def train_step(self, data, optim_wrapper):
        loss = self(torch.stack(data))['loss']
        return dict(loss=loss)  # nothing is learnt: the parameters stay what they were


def parameters_of_a_run(model, folder):
    Runner(
        model,
        str(folder),
        train_dataloader=dict(
            dataset=[torch.zeros(3, 32, 32)] * 2,
            sampler=dict(type='DefaultSampler'),
            collate_fn=lambda images: images,
            batch_size=2,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        log_level='ERROR',
        default_hooks=dict(checkpoint=None, logger=None),
        experiment_name=folder.name,
    ).train()
    return model.state_dict()


def test_what_was_loaded_is_what_is_trained(tmp_path):
    model = Toy()
    loaded = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(loaded)
    found = parameters_of_a_run(model, tmp_path / 'loaded')
    assert all(torch.equal(found[name], loaded[name]) for name in loaded)


def test_init_cfg_loads_strictly_when_the_runner_asks(tmp_path):
    source = Toy()
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    pretrained = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'), prefix='backbone.'
    )
    found = parameters_of_a_run(Toy(init_cfg=pretrained), tmp_path / 'pretrained')
    assert all(torch.equal(found[n], value) for n, value in source.state_dict().items())
    state = source.state_dict()
    del state['backbone.stages.0.norm.bias']
    torch.save(state, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='stages.0.norm.bias'):
        Toy(init_cfg=pretrained).init_weights()


def test_mmengines_other_initialisations_do_what_they_do():
    net = ClusTR(arch=NARROW, init_cfg=dict(type='Constant', layer='Conv2d', val=7.0))
    net.init_weights()
    assert (net.stages[0].patch_embed.proj.weight == 7).all()
    assert not (net.stages[0].blocks[0].attn.q.weight == 7).any()


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (123, 'init_cfg is 123; use a dict or a list of dicts'),
        ('weights.pth', "init_cfg is 'weights.pth'; use a dict"),
        ([dict(type='Pretrained'), dict(type='Constant')], 'leave only that one'),
    ],
)
def test_an_init_cfg_that_cannot_be_is_refused(init_cfg, message):
    with pytest.raises(ValueError, match=message):
        ClusTR(arch=NARROW, init_cfg=init_cfg)


def test_mmpretrains_own_layer_decay_takes_it():
    pytest.importorskip('mmpretrain')
    from mmpretrain.engine import optimizers  # noqa: F401 - registers
    from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS

    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get('LearningRateDecayOptimWrapperConstructor')
    net = ClusTR(arch=NARROW)
    wrapper = constructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(layer_decay_rate=0.5)
    )(net)
    rates = {p: group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert rates[net.stages[0].patch_embed.proj.weight] == 0.5**8
    assert rates[net.stages[3].norm.weight] == 0.5
    ours = build_optim_wrapper(
        net,
        dict(
            constructor='ClusTRLayerDecay',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    same = {p: group['lr'] for group in ours.optimizer.param_groups for p in group['params']}
    assert same == pytest.approx(rates)


@pytest.mark.parametrize('options', [dict(), dict(cluster_window=8)])
def test_mmengines_count_of_complexity_runs(options):
    from mmengine.analysis import get_model_complexity_info

    net = ClusTR(arch=NARROW, **options).eval()
    assert get_model_complexity_info(net, (3, 64, 64))['flops'] > 0
