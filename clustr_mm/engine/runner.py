"""mmengine's Runner as the tools have it: careful with checkpoints, and several processes on a CPU.

What it trains is what mmengine's own trains. It differs where that warns and goes on (a test or a
resumption with weights missing), where it would run what a file contains, and where it cannot run.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any, cast

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from clustr_mm.datasets.labels import label_report
from clustr_mm.engine.checkpoints import check_training_state, newest_checkpoint
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.unwrapping import unwrapped
from clustr_mm.weights.files import (
    CheckpointError,
    load_pretrained,
    load_strictly,
    read_checkpoint,
    state_dict_of,
)

# Rank, world size and local rank, as each launcher says them.
_LAUNCHER_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


class ToolRunner(Runner):
    """The Runner of tools/train.py and tools/test.py.

    Attributes:
        metrics: What the last test gave; None before it.
    """

    metrics: dict[str, float] | None = None
    _resume: bool
    _load_from: str | None
    _has_loaded: bool
    _strict = False

    def setup_env(self, env_cfg: dict) -> None:
        """Starts the processes' group first where there is no GPU: mmengine's start wants one."""
        if self._launcher != 'none' and get_device() == 'cpu':
            start_cpu_processes(self._launcher)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model; on a CPU without device ids and without SyncBN, which needs a GPU."""
        if self.distributed and get_device() == 'cpu':
            if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
                self.logger.warning(
                    'SyncBN runs on GPUs only: on this CPU it is plain BN, and each process '
                    'normalises by its own share of the batch.'
                )
            model = revert_sync_batchnorm(model)
            model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
                **(model_wrapper_cfg or {}),
                'device_ids': None,
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: Any) -> Any:
        """Builds the loop, and says what is odd about its data's labels, which nobody else does."""
        made = super().build_train_loop(loop)
        if is_main_process():
            for line in label_report(made.dataloader.dataset):
                self.logger.warning(f'Training data: {line}')
        return made

    def test(self) -> dict[str, float]:
        """Tests with all of the model's weights, or not at all; gives the metrics by name."""
        self._strict = True
        self.metrics = super().test()
        return self.metrics

    def load_or_resume(self) -> None:
        """Loads what the config names; ``resume`` without a file takes the newest whole one."""
        if self._has_loaded:
            return
        # After a restart of several machines only some of the processes know that they go on.
        asked: list[Any] = [self._resume, self._load_from]
        broadcast_object_list(asked)
        self._resume, self._load_from = asked
        if self._resume and self._load_from is None:
            self._load_from = newest_checkpoint(self.work_dir)
            self._resume = self._load_from is not None
            where = f'from {self._load_from}' if self._resume else 'anew: there is none yet'
            self.logger.info(f'Auto resumed from the latest checkpoint: the run starts {where}.')
        start = self.cfg.get('init_from')  # of --init-from, where the backbone is not ClusTR
        if start and not self._resume:
            backbone = cast(nn.Module, unwrapped(self.model).backbone)
            load_pretrained(backbone, dict(checkpoint=start, prefix='backbone.'))
            self.logger.info(f'The backbone starts from {start}.')
        super().load_or_resume()
        starts = [getattr(module, 'init_cfg', None) for module in self.model.modules()]
        pretrained = start or any('Pretrained' in str(each) for each in starts)
        if not self._has_loaded and not pretrained:
            self.logger.warning(
                'The model starts from random weights; --init-from CKPT starts the backbone from a '
                'checkpoint, load_from=CKPT the whole model.'
            )

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Goes on from a checkpoint whose optimizer and schedule are this config's."""
        self._strict = True
        try:
            super().resume(filename, *args, **kwargs)
        except (CheckpointError, UserError):
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(
                f'{filename} was saved with another optimizer or schedule ({reason}); go on with '
                'the config that it was saved with, or start anew with --init-from'
            ) from error

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, revise_keys: Any = ()
    ) -> dict[str, Any]:
        """Loads a checkpoint without running anything that it contains.

        For a test or a resumption every weight must be there and fit; ``load_from`` in training
        loads what fits and lists the rest, as mmengine does.
        """
        if re.match(r'(modelzoo|torchvision|open-?mmlab|mmcls|pavi)://', filename):
            checkpoint = CheckpointLoader.load_checkpoint(filename, 'cpu')  # a name in a table
        else:
            checkpoint = read_checkpoint(filename)
        if self._resume:
            check_training_state(checkpoint, filename)
            # Old versions of mmengine kept a config there, and resuming runs it.
            checkpoint['meta'].pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = unwrapped(self.model)
        weights = state_dict_of(checkpoint, filename)
        if strict or self._strict:
            if unexpected := load_strictly(model, weights, source=filename):
                self.logger.warning(f'unexpected key in {filename}: {", ".join(unexpected)}')
        else:
            load_state_dict(model, weights, strict=False, logger=self.logger)
            self._warn_of_foreign_backbone(model, weights, filename)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def _warn_of_foreign_backbone(
        self, model: nn.Module, weights: dict[str, Tensor], filename: str
    ) -> None:
        own = {key: value for key, value in model.state_dict().items() if 'backbone.' in key}
        if own and not any(
            key in weights and weights[key].shape == value.shape for key, value in own.items()
        ):
            self.logger.warning(
                f'{filename} has no weight of this backbone ({next(iter(own))} and so on), which '
                'starts as it was.'
            )

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds a loader; without worker processes none are kept, which torch would refuse."""
        if (
            isinstance(dataloader, dict)
            and dataloader.get('persistent_workers')
            and not dataloader.get('num_workers')
        ):
            dataloader = {**dataloader, 'persistent_workers': False}
        return Runner.build_dataloader(dataloader, *args, **kwargs)


def start_cpu_processes(launcher: str) -> None:
    """Joins this process to the gloo group of its launch, if it is in none.

    mmengine's own start always picks a CUDA device; it leaves a group that it finds alone.
    """
    if torch.distributed.is_initialized():
        return
    variables = _LAUNCHER_VARIABLES[launcher]
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher}: {", ".join(missing)} not in the environment; start the tool '
            f'with {"torchrun" if launcher == "pytorch" else launcher}, or leave --launcher out'
        )
    for name, given in zip(_LAUNCHER_VARIABLES['pytorch'], variables, strict=True):
        os.environ[name] = os.environ[given]
    if 'MASTER_ADDR' not in os.environ and int(os.environ.get('SLURM_NNODES', '1')) > 1:
        raise UserError(f'--launcher {launcher} over several machines needs MASTER_ADDR set')
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    if os.environ['RANK'] == '0':
        logging.getLogger('clustr_mm').warning('No GPU: the processes train on the CPU, over gloo.')
    torch.distributed.init_process_group('gloo')
