"""The runner of configs with a ``strategy``: FSDP and DeepSpeed."""

import copy
import os
import shutil
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, find_latest_checkpoint

from clustr_mm.engine import fsdp  # noqa: F401 - it registers
from clustr_mm.engine.checkpoints import (
    agree_on_start,
    newest_checkpoint,
    warn_of_random_weights,
)
from clustr_mm.engine.devices import start_cpu_processes
from clustr_mm.engine.errors import UserError
from clustr_mm.weights.files import replace_durably


@RUNNERS.register_module()
class StrictFlexibleRunner(FlexibleRunner):
    """A FlexibleRunner that runs several processes on a CPU and never leaves half a checkpoint.

    Strict loading is the strategy's: see :class:`clustr_mm.engine.fsdp.StrictFSDPStrategy`.
    """

    _resume: bool
    _load_from: str | None
    _has_loaded: bool

    @classmethod
    def from_cfg(cls, cfg: Config) -> Any:
        """Builds a runner; with DeepSpeed it has DeepSpeed's optimizer wrapper.

        Args:
            cfg: A whole config, as it is without a strategy.

        Returns:
            StrictFlexibleRunner: The runner.

        Raises:
            UserError: If the config's optimizer wrapper has no counterpart in DeepSpeed.
        """
        cfg = copy.deepcopy(cfg)
        cfg.setdefault('env_cfg', {})  # the base class takes None for one
        if 'DeepSpeed' in cfg.strategy.type:
            _use_deepspeed_optimizer(cfg)
        return super().from_cfg(cfg)

    def build_strategy(self, strategy: Any, launcher: str, **kwargs: Any) -> Any:
        """Builds the strategy, in a group of processes that has been started.

        Args:
            strategy: The config's strategy.
            launcher: How the processes were started.
            kwargs: As for ``FlexibleRunner.build_strategy``.

        Returns:
            BaseStrategy: The strategy.

        Raises:
            UserError: If there is one process only, or DeepSpeed is not installed.
        """
        kind = strategy['type'] if isinstance(strategy, dict) else type(strategy).__name__
        if launcher == 'none' and 'SingleDevice' not in kind:
            raise UserError(
                f'strategy {kind} shares a model out among processes; start several with '
                'tools/dist_train.sh CONFIG GPUS'
            )
        if 'DeepSpeed' in kind and find_spec('deepspeed') is None:
            raise UserError(f'strategy {kind} needs the package deepspeed; pip install deepspeed')
        if launcher != 'none' and get_device() == 'cpu':
            start_cpu_processes(launcher)
        return super().build_strategy(strategy, launcher=launcher, **kwargs)

    def load_or_resume(self) -> None:
        """Loads or goes on from what the config names.

        Raises:
            UserError: If a run is to go on and none of its checkpoints is whole.
        """
        agree_on_start(self, find_latest_checkpoint if self._saves_folders() else newest_checkpoint)
        super().load_or_resume()
        warn_of_random_weights(self)

    def _saves_folders(self) -> bool:
        """Whether the processes write a checkpoint together, and what is in it only they know."""
        return 'DeepSpeed' in type(self.strategy).__name__

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *_: Any,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        **__: Any,
    ) -> None:
        """Saves a checkpoint under a temporary name, then renames it.

        Every process calls this: a strategy gathers its shares, or writes a folder together. The
        epoch and iteration are those of ``meta``, as with a Runner; mmengine's FlexibleRunner
        counts one too many when it saves after a validation.

        Args:
            out_dir: The folder.
            filename: The checkpoint's name in it.
            save_optimizer: Whether to save the optimizer's state.
            save_param_scheduler: Whether to save the schedules' state.
            meta: More to save beside the weights, ``epoch`` and ``iter`` among it.
            by_epoch: Whether an epoch, not an iteration, has just been done.

        Raises:
            UserError: If the file system refuses it.
        """
        done = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        meta = {
            **done,
            **(meta or {}),
            'cfg': self.cfg.pretty_text,
            'experiment_name': self.experiment_name,
            'dataset_meta': getattr(self.train_dataloader.dataset, 'metainfo', None),
        }
        path = os.path.join(out_dir, filename)
        partial = f'{path}.part'
        try:
            self.strategy.save_checkpoint(
                filename=partial,
                save_optimizer=save_optimizer,
                save_param_scheduler=save_param_scheduler,
                extra_ckpt=dict(meta=meta, message_hub=self.message_hub.state_dict()),
                callback=lambda content: self.call_hook(
                    'before_save_checkpoint', checkpoint=content
                ),
            )
            barrier()
            if is_main_process():
                if os.path.isdir(partial):
                    shutil.rmtree(path, ignore_errors=True)  # no folder replaces another
                    os.replace(partial, path)
                else:
                    replace_durably(partial, path)
        except OSError as error:
            raise UserError(
                f'cannot write checkpoint {path}: {error.strerror}; make room or choose another '
                '--work-dir'
            ) from error


def _use_deepspeed_optimizer(cfg: Config) -> None:
    """Hands clipping and accumulation over to DeepSpeed, whose own the optimizer's step is."""
    wrapper, strategy = cfg.get('optim_wrapper'), cfg.strategy
    kind = wrapper.get('type', 'OptimWrapper') if wrapper else 'DeepSpeedOptimWrapper'
    if kind == 'DeepSpeedOptimWrapper':
        return
    if kind != 'OptimWrapper':
        raise UserError(
            f'strategy {strategy.type} takes the place of {kind}; leave --amp out, and say '
            'strategy.bf16.enabled=True'
        )
    wrapper.type = 'DeepSpeedOptimWrapper'
    if clip := wrapper.pop('clip_grad', None):
        if 'max_norm' not in clip:
            raise UserError(
                f'strategy {strategy.type} clips by the norm alone, and optim_wrapper.clip_grad is '
                f'{dict(clip)}; give dict(max_norm=...) or None'
            )
        strategy.setdefault('gradient_clipping', clip['max_norm'])
    strategy.setdefault('gradient_accumulation_steps', wrapper.pop('accumulative_counts', 1))
