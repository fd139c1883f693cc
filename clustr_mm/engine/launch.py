"""Training and testing, as functions: the tools are command lines over these."""

import os
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import find_latest_checkpoint

from clustr_mm.engine import config, pictures, predictions  # noqa: F401 - they register
from clustr_mm.engine.devices import choose_device
from clustr_mm.engine.errors import UserError, explained
from clustr_mm.engine.flexible import StrictFlexibleRunner
from clustr_mm.engine.launcher import end_with_launcher, was_restarted
from clustr_mm.engine.loading import use_safe_loading
from clustr_mm.engine.numerics import guard_numerics
from clustr_mm.engine.options import parse_test, parse_train
from clustr_mm.engine.resuming import make_resumable
from clustr_mm.engine.runner import StrictRunner


def train(arguments: Sequence[str] | None = None) -> Any:
    """Trains what a command line says.

    Args:
        arguments: train.py's arguments; None takes those of the process.

    Returns:
        Runner: The runner, its training done.

    Raises:
        UserError: If the user can mend what went wrong.
    """
    cfg = _training_config(arguments)
    if cfg.get('train_dataloader') is None or cfg.get('train_cfg') is None:
        raise UserError(f'config {cfg.filename} has no train_dataloader or train_cfg to train with')
    with explained(cfg):
        config.guard_data(cfg, ('train', 'val'))
        make_resumable(cfg)
        guard_numerics(cfg)
        runner = build_runner(cfg)
        try:
            runner.train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt('--resume goes on from the newest checkpoint') from None
    return runner


def validate_untrained(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Validates a model as it is before its first training step.

    Args:
        arguments: train.py's arguments; None takes those of the process.

    Returns:
        dict: The metrics by name.

    Raises:
        UserError: If the user can mend what went wrong.
    """
    cfg = _training_config(arguments)
    cfg.setdefault('default_hooks', {})['checkpoint'] = None  # it would keep this as the best
    cfg.pop('strategy', None)
    with explained(cfg):
        config.guard_data(cfg, ('val',))
        runner = build_runner(cfg)
        runner.model.init_weights()
        return runner.val()


def test(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Tests what a command line says.

    Args:
        arguments: test.py's arguments; None takes those of the process.

    Returns:
        dict: The metrics by name.

    Raises:
        UserError: If the user can mend what went wrong.
    """
    options = parse_test(arguments)
    end_with_launcher()
    device = choose_device(options.device)
    cfg = config.configure(options)
    cfg.load_from = options.checkpoint
    cfg.resume = False
    cfg.pop('strategy', None)  # a model that is not trained need not be shared out
    if os.path.isdir(options.checkpoint):
        raise UserError(
            f"checkpoint {options.checkpoint} is a folder, as DeepSpeed's are; the zero_to_fp32.py "
            'that DeepSpeed put beside it makes a file of it'
        )
    if not os.path.isfile(options.checkpoint):
        raise UserError(f'checkpoint {options.checkpoint} does not exist; check the path')
    if options.amp:
        config.use_amp(cfg, device)
        cfg.test_cfg.fp16 = True
    if options.tta:
        config.use_tta(cfg)
    if options.out is not None:
        evaluators = cfg.test_evaluator
        evaluators = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
        cfg.test_evaluator = [*evaluators, dict(type='PredictionFile', out=options.out)]
    if options.show_dir is not None:
        hook = dict(type='PictureHook', out_dir=options.show_dir)
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), hook]
    with explained(cfg):
        config.guard_data(cfg, ('test',))
        return build_runner(cfg).test()


def build_runner(cfg: Config) -> Any:
    """Builds the runner that a config names.

    Without a ``runner_type`` that is :class:`StrictFlexibleRunner` where the config has a
    ``strategy`` (FSDP, DeepSpeed), and :class:`StrictRunner` elsewhere.

    Args:
        cfg: A whole config.

    Returns:
        Runner: The runner.
    """
    use_safe_loading()
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return (StrictFlexibleRunner if cfg.get('strategy') else StrictRunner).from_cfg(cfg)


def _training_config(arguments: Sequence[str] | None) -> Config:
    """Reads train.py's command line and the config that it names."""
    options = parse_train(arguments)
    end_with_launcher()
    device = choose_device(options.device)
    cfg = config.configure(options)
    if was_restarted() and find_latest_checkpoint(cfg.work_dir):
        options.resume = 'auto'  # also where the run began from another checkpoint
    if options.amp:
        config.use_amp(cfg, device)
    if options.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(
                f'--auto-scale-lr: {options.config} has no auto_scale_lr.base_batch_size'
            )
        cfg.auto_scale_lr.enable = True
    if options.init_from is not None:
        config.use_init_from(cfg, options.init_from)
    if options.resume is not None:
        cfg.resume = True
        cfg.load_from = None if options.resume == 'auto' else options.resume
    return cfg
