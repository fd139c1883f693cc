"""Losses and gradients that are no numbers: left out, named, kept, computed again."""

import itertools
import os
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.structures import BaseDataElement
from torch import nn

from clustr_mm.engine import UserError
from clustr_mm.engine.numerics import all_finite, guard_numerics
from clustr_mm.engine.replay import replay, report
from clustr_mm.engine.runner import StrictRunner
from clustr_mm.weights.files import CheckpointError

_RUNS = itertools.count()
NAN = float('nan')


@MODELS.register_module()
class Normed(BaseModel):
    """A layer and a batch norm; where the input says so, the gradient alone is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.stack(inputs)
        inputs = inputs + torch.rand(()) * 0.1  # chance, which a replay has to bring back
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


def samples(values, prefix=''):
    """Two samples a step, whose inputs are filled with a value."""
    made = []
    for index, value in enumerate(itertools.chain.from_iterable((v, v) for v in values)):
        sample = BaseDataElement(metainfo=dict(img_path=f'{prefix}image_{index}.png'))
        row = torch.full((3,), float(value)) + torch.arange(3.0) + index % 2
        made.append(dict(inputs=row, data_samples=sample))
    return made


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
    return StrictRunner(
        model=dict(type='Normed'),
        launcher=launcher,
        work_dir=str(folder),
        experiment_name=f'numerics{next(_RUNS)}',
        train_dataloader=dict(
            batch_size=2,
            dataset=samples(values, prefix),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=len(values)),
        optim_wrapper={
            'type': wrapper,
            'optimizer': dict(type='SGD', lr=0.1),
            'accumulative_counts': accumulate,
            **more,
        },
        default_hooks=dict(checkpoint=None),
        custom_hooks=[
            dict(type='SeedHook'),
            dict(type='NumericsGuardHook', **(guard or dict(stop_after=3))),
        ],
        randomness=dict(seed=0),
        cfg=dict(model=dict(type='Normed'), default_scope='mmengine', train_cfg=dict()),
    )


def log_of(runner):
    return Path(runner._log_dir, f'{runner.timestamp}.log').read_text()


def written(folder):
    return sorted(os.listdir(folder / 'numerics'))


@pytest.mark.parametrize('bad', [NAN, 9.0], ids=['loss', 'gradient'])
def test_a_step_that_is_no_number_leaves_no_trace(tmp_path, bad):
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
    assert len(written(tmp_path)) == 3, 'no more than keep'


def test_none_goes_on_whatever_comes(tmp_path):
    runner = make_runner(tmp_path, [1, NAN, NAN, NAN, NAN, 2], dict(stop_after=None, keep=1))
    runner.train()
    assert runner.iter == 6
    assert log_of(runner).count('left out a step') == 4
    assert written(tmp_path) == ['step_2_process_0.pth']


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


def test_a_step_is_computed_again(tmp_path):
    runner = make_runner(tmp_path, [1, 9.0, 2])
    runner.train()
    path = tmp_path / 'numerics' / 'step_2_process_0.pth'
    torch.manual_seed(5)
    result = replay(str(path))
    assert result.files == ['image_2.png', 'image_3.png']
    assert result.losses['loss'] == result.recorded['loss'], 'chance included'
    assert result.gradients == ['layer.weight']
    assert result.first is None
    assert 'layer.weight' in report(result)


def test_the_tool_says_what_it_computed(tmp_path, capsys):
    make_runner(tmp_path, [1, NAN, 2]).train()
    capsys.readouterr()
    tool = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'replay.py'))
    tool['main']([str(tmp_path / 'numerics' / 'step_2_process_0.pth'), '--device', 'cpu'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:-3] == ['file: image_2.png', 'file: image_3.png']
    assert lines[-3] == 'loss: nan (in the run: nan)'
    assert lines[-2] == (
        'first output that is not finite: data_preprocessor (BaseDataPreprocessor)'
    )
    assert lines[-1].startswith('gradients that are not finite: 4 (layer.weight, ')


def test_the_first_output_that_is_no_number_is_found(tmp_path):
    make_runner(tmp_path, [1, NAN, 2]).train()
    result = replay(str(tmp_path / 'numerics' / 'step_2_process_0.pth'))
    assert result.first == 'data_preprocessor (BaseDataPreprocessor)'
    assert set(result.gradients) == {'layer.weight', 'layer.bias', 'norm.weight', 'norm.bias'}


def test_files_for_replay_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    torch.save(dict(batch=Evil()), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='mkdir'):
        replay(str(tmp_path / 'x.pth'))
    assert not (tmp_path / 'ran').exists()
    # A path of names through a library's module is no class of that library.
    path = b'\x80\x04\x8c+mmengine.structures.base_data_element.torch\x8c\x09os.system\x93.'
    (tmp_path / 'y.pth').write_bytes(path)
    with pytest.raises(CheckpointError):
        replay(str(tmp_path / 'y.pth'))
    torch.save(dict(state_dict={}), tmp_path / 'z.pth')
    with pytest.raises(UserError, match='numerics/'):
        replay(str(tmp_path / 'z.pth'))


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


def test_what_cannot_be_written_does_not_hide_the_fault(tmp_path):
    (tmp_path / 'numerics').write_text('a file where the folder should be')
    runner = make_runner(tmp_path, [1, NAN], dict(stop_after=1))
    with pytest.raises(UserError, match='step 2 is infinite') as error:
        runner.train()
    assert 'replay.py' not in str(error.value)


def test_a_run_without_a_strategy_is_guarded(capsys):
    for strategy, guarded in ((None, True), (dict(type='FSDPStrategy'), False)):
        cfg = Config(dict(strategy=strategy, custom_hooks=[]))
        guard_numerics(cfg)
        assert bool(cfg.custom_hooks) == guarded


def test_all_finite():
    assert all_finite([])
    assert all_finite([torch.full((2,), 3e38), torch.zeros(0), torch.ones(2, dtype=torch.int64)])
    assert not all_finite([torch.ones(2), torch.tensor([1, float('inf')])])
    assert not all_finite([torch.tensor([NAN]).to_sparse()])


@pytest.mark.parametrize('options', [dict(stop_after=0), dict(keep=-1)])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match='numerics_guard'):
        make_runner(tmp_path, [1], options)
