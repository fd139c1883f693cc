"""Losses and gradients that are NaN or infinite: left out, and named."""

import itertools
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from clustr_mm.engine import UserError, resuming  # noqa: F401 - it registers
from clustr_mm.engine.numerics import all_finite
from clustr_mm.engine.runner import ToolRunner

_RUNS = itertools.count()
NAN = float('nan')


@MODELS.register_module()
class Normed(BaseModel):
    """A layer and a batch norm; where the input says so, the gradient alone is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.stack(inputs)
        inputs = inputs + torch.rand(()) * 0.1  # chance, which depends on the step
        out = self.norm(self.layer(inputs))
        loss = out.square().mean() + out.mean()
        if inputs.max() > 9:
            loss = loss + (self.layer.weight * 0).sum().sqrt()  # 0, of infinite slope
        return dict(loss=loss)


needs_cpu_scaler = pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'), reason='torch before 2.3 scales gradients on GPUs only'
)


@OPTIM_WRAPPERS.register_module()
class CpuAmp(AmpOptimWrapper):
    """mmengine's mixed precision with torch's scaler for CPUs, which mmengine does not allow."""

    def __init__(self, init_scale=1024.0, **options):
        OptimWrapper.__init__(self, **options)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)
        self.cast_dtype = torch.bfloat16


class Samples(list, Dataset):
    """A list that is a data set."""


def samples(values, prefix=''):
    """Two samples a step, whose inputs are filled with a value."""
    made = []
    for index, value in enumerate(itertools.chain.from_iterable((v, v) for v in values)):
        sample = BaseDataElement(metainfo=dict(img_path=f'{prefix}image_{index}.png'))
        row = torch.full((3,), float(value)) + torch.arange(3.0) + index % 2
        made.append(dict(inputs=row, data_samples=sample))
    return Samples(made)


def make_runner(
    folder,
    values,
    guard=None,
    accumulate=1,
    wrapper='OptimWrapper',
    launcher='none',
    prefix='',
    **more,
):
    torch.manual_seed(0)
    return ToolRunner(
        model=dict(type='Normed'),
        launcher=launcher,
        work_dir=str(folder),
        experiment_name=f'numerics{next(_RUNS)}',
        train_dataloader=dict(
            batch_size=2,
            dataset=samples(values, prefix),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(type='ResumableIterLoop', max_iters=len(values)),
        optim_wrapper={
            'type': wrapper,
            'optimizer': dict(type='SGD', lr=0.1),
            'accumulative_counts': accumulate,
            **more,
        },
        default_hooks=dict(checkpoint=None),
        custom_hooks=[
            dict(type='NumericsGuardHook', **(guard or dict(stop_after=3))),
        ],
        randomness=dict(seed=0),
        cfg=dict(model=dict(type='Normed'), default_scope='mmengine', train_cfg=dict()),
    )


def log_of(runner):
    return Path(runner._log_dir, f'{runner.timestamp}.log').read_text()


@pytest.mark.parametrize('bad', [NAN, 9.0], ids=['loss', 'gradient'])
def test_a_step_of_nan_leaves_no_trace(tmp_path, bad):
    runner = make_runner(tmp_path, [1, bad, 2])
    runner.train()
    state = runner.model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    # Its steps have the chance of their numbers; the one between changes nothing.
    other = make_runner(tmp_path, [1, 0, 2])
    skipped = other.model.forward
    other.model.forward = lambda *args, **kwargs: (
        skipped(*args, **kwargs)
        if other.iter != 1
        else dict(loss=other.model.layer.weight.sum() * NAN)
    )
    other.train()
    assert all(torch.equal(value, state[key]) for key, value in other.model.state_dict().items())
    assert 'image_2.png, image_3.png' in log_of(runner)


def test_a_few_in_a_row_stop_the_run_in_one_line(tmp_path):
    runner = make_runner(tmp_path, [1, NAN, NAN, 2, NAN, NAN, NAN, 3])
    with pytest.raises(UserError) as error:
        runner.train()
    assert runner.iter == 6
    line = str(error.value)
    assert '\n' not in line
    for word in (
        'the loss (loss) of step 7',
        'image_12.png, image_13.png',
        '3 such steps in a row',
    ):
        assert word in line
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def test_none_goes_on_whatever_comes(tmp_path):
    runner = make_runner(tmp_path, [1, NAN, NAN, NAN, NAN, 2], dict(stop_after=None))
    runner.train()
    assert runner.iter == 6
    assert log_of(runner).count('left out a step') == 4


@pytest.mark.parametrize('bad', [NAN, 9.0], ids=['loss', 'gradient'])
def test_of_accumulated_steps_the_guilty_one_is_named(tmp_path, bad):
    runner = make_runner(tmp_path, [1, bad, 2, 3], accumulate=4)
    before = runner.model.layer.weight.clone()
    runner.train()
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    assert not torch.equal(before, runner.model.layer.weight), 'the others make their step'
    assert 'of step 2' in log_of(runner)
    assert log_of(runner).count('left out a step') == 1


# A fused optimizer asks the gradient scaler itself.
fused_too = pytest.mark.parametrize('fused', [False, True], ids=['each', 'fused'])


@needs_cpu_scaler
@fused_too
def test_the_gradient_scaler_may_leave_out_steps(tmp_path, fused):
    # Gradients beyond bfloat16 and float32 alike: the scale is halved until they fit.
    options = dict(wrapper='CpuAmp', init_scale=2.0**127)
    options['optimizer'] = dict(type='SGD', lr=0.1, fused=fused)
    runner = make_runner(tmp_path, [1] * 8, dict(stop_after=1), **options)
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**127
    assert 'left out a step' not in log_of(runner)


@needs_cpu_scaler
@pytest.mark.parametrize('bad', [NAN, 9.0], ids=['loss', 'gradient'])
@fused_too
def test_faults_are_seen_through_the_gradient_scaler(tmp_path, bad, fused):
    options = dict(wrapper='CpuAmp', init_scale=1.0)
    options['optimizer'] = dict(type='SGD', lr=0.1, fused=fused)
    runner = make_runner(tmp_path, [1] + [bad] * 4, dict(stop_after=2), **options)
    with pytest.raises(UserError, match='of step 3'):
        runner.train()
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def test_a_value_that_is_no_loss_is_no_fault(tmp_path):
    runner = make_runner(tmp_path, [1, 2])
    forward = runner.model.forward
    runner.model.forward = lambda *args, **kwargs: dict(
        forward(*args, **kwargs), psnr=torch.tensor(float('inf'))
    )
    runner.train()
    assert 'infinite' not in log_of(runner)


def test_a_step_that_is_made_is_not_said_to_be_left_out(tmp_path):
    runner = make_runner(tmp_path, [1, 2])
    forward = runner.model.forward
    runner.model.forward = lambda *args, **kwargs: dict(
        forward(*args, **kwargs), loss_of_nothing=torch.tensor(NAN)
    )
    runner.train()
    assert 'made a step, for its gradients are finite' in log_of(runner)


def test_all_finite():
    assert all_finite([])
    assert all_finite([torch.full((2,), 3e38), torch.zeros(0), torch.ones(2, dtype=torch.int64)])
    assert not all_finite([torch.ones(2), torch.tensor([1, float('inf')])])
    assert not all_finite([torch.tensor([NAN]).to_sparse()])


def test_a_number_out_of_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match='stop_after is 0'):
        make_runner(tmp_path, [1], dict(stop_after=0))
