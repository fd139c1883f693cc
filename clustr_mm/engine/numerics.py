"""The guard against losses and gradients that are NaN or infinite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor
from torch.optim import Optimizer

from clustr_mm.engine.errors import UserError
from clustr_mm.engine.unwrapping import unwrapped

_SHOWN = 4  # file names in a message


@HOOKS.register_module()
class NumericsGuardHook(Hook):
    """Keeps losses and gradients that are NaN or infinite out of the weights.

    A step whose gradients are not finite is not made: the optimizer finds none, so that weights,
    moments and, put back, the statistics of normalisations stay as they were. (A loss that is not
    finite has such gradients, unless it does not depend on the weights.) The batch's files are
    named in the log.

    With mixed precision the gradient scaler leaves out steps of its own accord, which is no fault
    until its scale has fallen below 1.

    Args:
        stop_after: After how many such steps in a row, 1 or more, the run ends; None: never.
    """

    priority = 'HIGH'  # before those who log and save

    def __init__(self, stop_after: int | None = 3) -> None:
        if stop_after is not None and stop_after < 1:
            raise ValueError(f'NumericsGuardHook.stop_after is {stop_after}; give 1 or more')
        self.stop_after = stop_after
        self._in_a_row = 0
        self._made = False  # the optimizer's step
        self._left_out = False
        self._scale = math.inf
        self._buffers: list[Tensor] = []

    def before_train(self, runner: Any) -> None:
        """Looks at the gradients of every step from now on."""
        for wrapper in _wrappers(runner):
            wrapper.optimizer.register_step_pre_hook(self._before_step)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps what the step may spoil."""
        self._made = self._left_out = False
        self._buffers = [buffer.clone() for buffer in unwrapped(runner.model).buffers()]

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Judges the step, and ends the run at the last fault in a row that it may have."""
        # Of the values logged, mmengine trains on those whose names say loss.
        losses = {name: value for name, value in (outputs or {}).items() if 'loss' in name}
        wrong = [
            name for name, value in losses.items() if not torch.as_tensor(value).isfinite().all()
        ]
        if not wrong and not self._left_out and self._gradients_finite(runner):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        for buffer, before in zip(unwrapped(runner.model).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        for wrapper in _wrappers(runner):
            wrapper.zero_grad()  # those of a step that is still being accumulated
        what = f'the loss ({", ".join(wrong)})' if wrong else 'a gradient'
        fault = f'{what} of step {runner.iter + 1} is NaN or infinite; '
        if wrong or get_world_size() == 1:
            files = batch_files(data_batch)
            more = f' and {len(files) - _SHOWN} more' if len(files) > _SHOWN else ''
            fault += f'its batch: {", ".join(files[:_SHOWN])}{more}'
        else:
            fault += 'gradients are the sum over all processes, so any of their batches may be why'
        if self.stop_after is not None and self._in_a_row >= self.stop_after:
            raise UserError(
                f'{fault}; stopped after {self._in_a_row} such steps in a row: lower the learning '
                "rate or clip gradients (NumericsGuardHook's stop_after=None goes on)"
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


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is NaN or infinite; waits for the device once."""
    finite = [
        (each.coalesce().values() if each.is_sparse else each).detach().isfinite().all()
        for each in tensors
    ]
    return not finite or bool(torch.stack(finite).all())


def batch_files(batch: Any) -> list[str]:
    """The image files of a batch's samples, as far as they know them."""
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
