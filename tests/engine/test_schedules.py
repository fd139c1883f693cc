"""Every schedule's state is plain data: a run that used it can go on without trusting its file."""

import mmengine.optim.scheduler  # noqa: F401 - registers
import pytest
import torch
from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from clustr_mm.weights.files import read_checkpoint

# What has no default.
ARGUMENTS = dict(
    LinearLR=dict(start_factor=0.1),
    MultiStepLR=dict(milestones=[8, 11, 11]),
    StepLR=dict(step_size=2),
    ExponentialLR=dict(gamma=0.5),
    CosineAnnealingLR=dict(T_max=5),
    CosineRestartLR=dict(periods=[2, 3], restart_weights=[1, 0.5], eta_min=0),
    OneCycleLR=dict(eta_max=0.1, total_steps=20),
    ReduceOnPlateauLR=dict(monitor='loss'),
)


@pytest.mark.parametrize('name', ['ConstantLR', 'PolyLR', *ARGUMENTS])
def test_state_is_read_back_without_trust(tmp_path, name):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    scheduler = PARAM_SCHEDULERS.get(name)(optimizer, **ARGUMENTS.get(name, {}))
    assert isinstance(scheduler, _ParamScheduler)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict={'w': weight.data}, param_schedulers=[scheduler.state_dict()]), path)
    (state,) = read_checkpoint(path)['param_schedulers']
    assert state == scheduler.state_dict()
