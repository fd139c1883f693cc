"""A run that was stopped anywhere ends with the weights of one that was not."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_run import VALIDATION, make_config, run

from clustr_mm.engine import UserError, cli
from clustr_mm.engine.runner import ToolRunner


def assert_same(one, other):
    """Compares checkpoints' weights, optimizers and schedules, bit by bit."""
    one, other = (torch.load(path, weights_only=False) for path in (one, other))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(one[key], other[key])


def assert_equal(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), [other[key] for key in one]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_equal(each, its)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def stop_after(folder, step, tmp_path):
    """A work folder as a kill after a step would have left it."""
    left = tmp_path / f'stopped_{step}'
    left.mkdir()
    shutil.copy(folder / f'iter_{step}.pth', left)
    return left


@pytest.mark.parametrize('epochs', [False, True], ids=['iterations', 'epochs'])
@pytest.mark.parametrize('accumulate', [1, 3])
def test_resumed_anywhere(tmp_path, epochs, accumulate):
    changes = {'optim_wrapper.accumulative_counts': accumulate}
    run(make_config(tmp_path / 'whole', epochs, **changes))
    for step in (1, 4, 6, 11):
        left = stop_after(tmp_path / 'whole', step, tmp_path)
        assert run(make_config(left, epochs, resume=True, **changes)).iter == 12
        assert_same(tmp_path / 'whole' / 'iter_12.pth', left / 'iter_12.pth')


@pytest.mark.parametrize('epochs', [False, True], ids=['iterations', 'epochs'])
def test_workers_change_nothing(tmp_path, epochs):
    run(make_config(tmp_path / 'whole', epochs))
    left = stop_after(tmp_path / 'whole', 7, tmp_path)
    workers = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}
    run(make_config(left, epochs, resume=True, **workers))
    assert_same(tmp_path / 'whole' / 'iter_12.pth', left / 'iter_12.pth')


def test_endless_order_of_a_finite_sampler(tmp_path):
    # mmengine's iteration loop begins such a sampler anew (after two seconds) whenever it ends.
    changes = {'train_dataloader.sampler.type': 'DefaultSampler', 'train_cfg.max_iters': 6}
    run(make_config(tmp_path / 'whole', epochs=False, **changes))
    left = stop_after(tmp_path / 'whole', 5, tmp_path)
    run(make_config(left, epochs=False, resume=True, **changes))
    assert_same(tmp_path / 'whole' / 'iter_6.pth', left / 'iter_6.pth')


def test_a_seed_that_was_drawn_is_kept(tmp_path):
    run(make_config(tmp_path / 'whole', epochs=True, randomness=dict()))
    left = stop_after(tmp_path / 'whole', 5, tmp_path)
    run(make_config(left, epochs=True, resume=True, randomness=dict()))
    assert_same(tmp_path / 'whole' / 'iter_12.pth', left / 'iter_12.pth')


def test_epochs_of_another_length_are_refused_in_the_middle_of_one(tmp_path):
    run(make_config(tmp_path / 'whole', epochs=True))
    other = {'train_dataloader.batch_size': 4}
    left = stop_after(tmp_path / 'whole', 6, tmp_path)
    with pytest.raises(UserError, match='after 2 of an epoch of 4 batches, .* has 2'):
        run(make_config(left, epochs=True, resume=True, **other))


def test_another_optimizer_is_refused_in_one_line(tmp_path):
    run(make_config(tmp_path / 'whole', epochs=True))
    path = str(tmp_path / 'whole' / 'iter_6.pth')
    cfg = make_config(tmp_path / 'other', epochs=True, resume=True, load_from=path)
    cfg.optim_wrapper.paramwise_cfg = dict(bias_lr_mult=2.0)  # a group for each parameter
    with pytest.raises(UserError, match='another optimizer or schedule') as error:
        run(cfg)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('epochs', [False, True], ids=['iterations', 'epochs'])
def test_a_validation_that_was_not_reached_is_made_up_for(tmp_path, epochs):
    changes = {'train_cfg.val_interval': 1 if epochs else 4, **VALIDATION}
    saving = dict(save_best='acc', rule='greater')
    # Without validation: what a kill between the last checkpoint and the validation leaves.
    run(make_config(tmp_path / 'whole', epochs))
    for step, due in ((12, True), (8, True), (7, False)):
        left = stop_after(tmp_path / 'whole', step, tmp_path)
        runner = run(make_config(left, epochs, saving, resume=True, **changes))
        assert runner.iter == 12
        assert list(left.glob('best_*.pth'))
        validations = runner.message_hub.get_scalar('val/acc').data[1].sum()
        assert validations == due + (2 if step == 7 else (12 - step) // 4)
    # And not twice.
    again = run(make_config(left, epochs, saving, resume=True, **changes))
    assert again.message_hub.get_scalar('val/acc').data[1].sum() == validations


def test_a_validation_that_was_no_best_is_not_made_again(tmp_path):
    changes = {'train_cfg.val_interval': 4, **VALIDATION, 'val_evaluator.type': 'FlatScore'}
    saving = dict(save_best='acc', rule='greater')
    done = run(make_config(tmp_path, False, saving, **changes))
    assert done.message_hub.get_scalar('val/acc').data[1].sum() == 3
    again = run(make_config(tmp_path, False, saving, resume=True, **changes))
    validations = again.message_hub.get_scalar('val/acc').data[1].sum()
    assert validations == 2, 'the two before the checkpoint, which it holds'


def test_an_earlier_runs_validation_is_none_of_a_new_one(tmp_path):
    changes = {'train_cfg.val_interval': 4, **VALIDATION}
    run(make_config(tmp_path, False, **changes))
    assert (tmp_path / 'last_validation').read_text() == '12'
    # The new one is stopped before it validates at 4, and later than the earlier one's note.
    run(make_config(tmp_path, False))
    assert not (tmp_path / 'last_validation').exists()
    left = run(make_config(tmp_path, False, resume=True, **changes))
    assert left.message_hub.get_scalar('val/acc').data[1].sum() == 1, 'that of step 12'


def test_what_keeps_a_state_of_its_own_is_named(tmp_path):
    def cached(inputs):  # as mmdet's CachedMosaic has it
        return inputs

    cached.results_cache = []
    run(make_config(tmp_path, epochs=True))
    cfg = make_config(tmp_path, epochs=True, resume=True, log_level='INFO')
    runner = ToolRunner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.train_loop.dataloader.dataset.pipeline = [cached]
    runner.model.data_preprocessor.batch_augments = object()  # mmpretrain has one, others a list
    runner.train()
    log = Path(runner._log_dir, f'{runner.timestamp}.log').read_text()
    assert log.count('function keep what earlier batches left') == 1


def test_a_restart_takes_no_earlier_runs_checkpoint(tmp_path, monkeypatch):
    run(make_config(tmp_path, epochs=False))
    cfg = make_config(tmp_path, epochs=False)
    options = SimpleNamespace(resume=None, auto_scale_lr=False, init_from=None)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    for path in tmp_path.glob('*.pth'):
        os.utime(path, (1, 1))  # before this process's launcher was
    cli._settle_start(cfg, options)
    assert not cfg.get('resume')
    os.utime(tmp_path / 'iter_12.pth')
    cli._settle_start(cfg, options)
    assert cfg.resume
