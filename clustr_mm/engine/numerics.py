"""The guard against losses and gradients that are no numbers."""

import logging
import math
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor
from torch.optim import Optimizer

from clustr_mm.engine.config import add_hook
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.seeding import random_state
from clustr_mm.engine.unwrapping import unwrapped
from clustr_mm.weights.files import replace_durably

_SHOWN = 4  # file names in a message


@HOOKS.register_module()
class NumericsGuardHook(Hook):
    """Keeps losses and gradients that are infinite or no numbers out of the weights.

    A step whose gradients are not finite is not made: the optimizer finds none, so that weights,
    moments and, put back, the statistics of normalisations stay as they were. (A loss that is not
    finite has such gradients, unless it does not depend on the weights.) The batch's files are
    named in the log, and a file with the batch, the weights and the state of chance is written to
    ``numerics/`` in the work folder, which tools/replay.py computes again.

    With mixed precision the gradient scaler leaves out steps of its own accord, which is no fault
    until its scale has fallen below 1.

    Args:
        stop_after: After how many such steps in a row the run ends; None: never, they are passed
            over.
        keep: How many files a run writes at most; each holds the model's weights.

    Raises:
        ValueError: If a number is below 1 (``stop_after``) or 0 (``keep``).
    """

    priority = 'HIGH'  # after the step's seed, before those who log and save

    def __init__(self, stop_after: int | None = 3, keep: int = 3) -> None:
        if stop_after is not None and stop_after < 1:
            raise ValueError(f'numerics_guard.stop_after is {stop_after}; give 1 or more, or None')
        if keep < 0:
            raise ValueError(f'numerics_guard.keep is {keep}; give 0 or more')
        self.stop_after = stop_after
        self.keep = keep
        self._in_a_row = 0
        self._written = 0
        self._made = False  # the optimizer's step
        self._left_out = False
        self._scale = math.inf
        self._buffers: list[Tensor] = []
        self._chance: dict[str, Any] = {}

    def before_train(self, runner: Any) -> None:
        """Looks at the gradients of every step from now on.

        Args:
            runner: The runner of the training.
        """
        for wrapper in _wrappers(runner):
            wrapper.optimizer.register_step_pre_hook(self._before_step)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps what the step may spoil, and what it takes to compute it again.

        Args:
            runner: The runner of the training.
            batch_idx: Not used.
            data_batch: Not used.
        """
        self._made = self._left_out = False
        self._buffers = [buffer.clone() for buffer in unwrapped(runner.model).buffers()]
        self._chance = random_state()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Judges the step.

        Args:
            runner: The runner of the training.
            batch_idx: Not used.
            data_batch: The batch as the data loader gave it.
            outputs: The losses by name.

        Raises:
            UserError: If it is the last fault in a row that the run may have.
        """
        losses = {
            name: float(torch.as_tensor(value).detach()) for name, value in (outputs or {}).items()
        }
        # Of the values logged, mmengine trains on those whose names say loss.
        wrong = [n for n, value in losses.items() if 'loss' in n and not math.isfinite(value)]
        if not wrong and not self._left_out and self._gradients_finite(runner):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        for buffer, before in zip(unwrapped(runner.model).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        for wrapper in _wrappers(runner):
            wrapper.zero_grad()  # those of a step that is still being accumulated
        files = batch_files(data_batch)
        what = f'the loss ({", ".join(wrong)})' if wrong else 'a gradient'
        fault = f'{what} of step {runner.iter + 1} is infinite or no number; '
        if wrong or get_world_size() == 1:
            more = f' and {len(files) - _SHOWN} more' if len(files) > _SHOWN else ''
            fault += f'its batch: {", ".join(files[:_SHOWN])}{more}'
        else:  # the sum over all processes is what everyone sees
            fault += 'which process it comes from is for tools/replay.py to tell'
        path = None
        if self._written < self.keep:
            path = self._write(runner, data_batch, losses, files)
        if path is not None:
            fault += f'; python tools/replay.py {shlex.quote(str(path))} computes it again'
        if self.stop_after is not None and self._in_a_row >= self.stop_after:
            raise UserError(
                f'{fault}; stopped after {self._in_a_row} such steps in a row '
                '(numerics_guard.stop_after)'
            )
        done = 'made a step, for its gradients are finite' if self._made else 'left out a step'
        # Of other processes than the first, mmengine shows errors only.
        level = logging.ERROR if wrong and get_rank() else logging.WARNING
        runner.logger.log(level, f'{done}: {fault}')

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Takes the gradients away from a step that they would spoil."""
        found_inf = getattr(optimizer, 'found_inf', None)
        if found_inf is not None:  # a fused optimizer asks the gradient scaler itself
            self._made = not found_inf.item()
        elif all_finite(_gradients(optimizer)):
            self._made = True
        else:
            self._left_out = True
            optimizer.zero_grad(set_to_none=True)

    def _gradients_finite(self, runner: Any) -> bool:
        """Whether what is being accumulated is finite, or the gradient scaler's own matter."""
        for wrapper in _wrappers(runner):
            if isinstance(wrapper, AmpOptimWrapper):
                before, self._scale = self._scale, wrapper.loss_scaler.get_scale()
                if self._scale < min(before, 1.0) and before != math.inf:
                    return False
            elif not all_finite(_gradients(wrapper.optimizer)):
                return False
        return True

    def _write(
        self, runner: Any, batch: Any, losses: dict[str, float], files: list[str]
    ) -> Path | None:
        """Writes what replay.py needs, if the disk takes it."""
        path = (
            Path(runner.work_dir) / 'numerics' / f'step_{runner.iter + 1}_process_{get_rank()}.pth'
        )
        first = next(_wrappers(runner))
        autocast = str(first.cast_dtype) if isinstance(first, AmpOptimWrapper) else None
        content = {
            'cfg': runner.cfg.to_dict(),
            'state_dict': {k: v.cpu() for k, v in unwrapped(runner.model).state_dict().items()},
            'batch': batch,
            'random_state': self._chance,
            'losses': losses,
            'files': files,
            'amp': autocast,
        }
        part = path.with_name(f'{path.name}.part')
        try:
            path.parent.mkdir(exist_ok=True)
            torch.save(content, part)
            replace_durably(part, path)
        except (OSError, RuntimeError) as error:  # a full disk shall not hide what happened
            if part.is_file():
                part.unlink()
            runner.logger.warning(f'{path} could not be written: {error}')
            return None
        self._written += 1
        return path


def guard_numerics(cfg: Config) -> None:
    """Adds the guard to a training config, as that says.

    A run with a ``strategy`` (FSDP, DeepSpeed) has none: there gradients and weights lie in pieces,
    and the strategy's own optimizer decides about a step.

    Args:
        cfg: The config, changed in place; ``numerics_guard`` holds the arguments of
            ``NumericsGuardHook``, and None leaves it out.
    """
    arguments = cfg.get('numerics_guard', {})
    if arguments is None:
        return
    if cfg.get('strategy'):
        print_log('numerics_guard: off, for no process sees a whole gradient with a strategy')
    else:
        add_hook(cfg, dict(type='NumericsGuardHook', **arguments))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is infinite or no number.

    Args:
        tensors: Any shapes and dtypes, sparse ones too.

    Returns:
        bool: True also where there is none. One synchronisation with the device.
    """
    finite = [
        (each.coalesce().values() if each.is_sparse else each).detach().isfinite().all()
        for each in tensors
    ]
    return not finite or bool(torch.stack(finite).all())


def batch_files(batch: Any) -> list[str]:
    """The image files that a batch was made from.

    Args:
        batch: As a data loader of any of the libraries gives it.

    Returns:
        list[str]: A path for each sample that knows it.
    """
    samples = batch.get('data_samples', []) if isinstance(batch, dict) else []
    found = (getattr(sample, 'metainfo', {}).get('img_path') for sample in samples)
    return [str(path) for path in found if path is not None]


def _wrappers(runner: Any) -> Iterator[OptimWrapper]:
    wrapper = runner.optim_wrapper
    yield from (
        wrapper.optim_wrappers.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    )


def _gradients(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group['params']:
            if parameter.grad is not None:
                yield parameter.grad
