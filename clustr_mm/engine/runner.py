"""mmengine's Runner with the three things that it only warns about, or does not do.

A checkpoint that does not fit stops the run, a checkpoint is on disk whole or not at all, and
several processes run without a GPU.
"""

import os
from typing import Any

from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from clustr_mm.engine.devices import replace_sync_batchnorm, start_cpu_processes
from clustr_mm.engine.errors import UserError
from clustr_mm.models.checkpoint import load_strictly, read_checkpoint, state_dict_of


@RUNNERS.register_module()
class StrictRunner(Runner):
    """A Runner that loads strictly, saves whole files, and runs several processes on a CPU."""

    def setup_env(self, env_cfg: dict) -> None:
        """Starts the processes' group first where there is no GPU (see devices.py)."""
        if self._launcher != 'none' and get_device() == 'cpu':
            start_cpu_processes(self._launcher)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model; on a CPU without device ids and without SyncBN, which needs a GPU."""
        if self.distributed and get_device() == 'cpu':
            model = replace_sync_batchnorm(model, self.logger)
            model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
                **(model_wrapper_cfg or {}),
                'device_ids': None,
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def load_or_resume(self) -> None:
        """Loads what the config names, and says so where a model starts from random weights."""
        super().load_or_resume()
        pretrained = any(
            isinstance(cfg := getattr(module, 'init_cfg', None), dict)
            and cfg.get('type') == 'Pretrained'
            for module in self.model.modules()
        )
        if not self._has_loaded and not pretrained:
            self.logger.warning(
                'The model starts from random weights: no pretrained ClusTR weights are public. '
                '--init-from CKPT starts the backbone from a checkpoint.'
            )

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint, all of it or none, and runs nothing that it contains.

        Args:
            filename: Path of the checkpoint, or an address that mmengine knows.
            args: As for ``Runner.load_checkpoint``, for addresses.
            kwargs: As for ``Runner.load_checkpoint``, for addresses.

        Returns:
            dict: The checkpoint, on the CPU.

        Raises:
            CheckpointError: If the file is missing, is no checkpoint, or does not fit the model.
            UserError: If a run is to go on from a file that holds weights only.
        """
        if '://' in filename:
            return super().load_checkpoint(filename, *args, **{**kwargs, 'strict': True})
        checkpoint = read_checkpoint(filename)
        if self._resume and not {'meta', 'message_hub', 'optimizer'} <= set(checkpoint):
            raise UserError(
                f'{filename} holds weights but no training state, so --resume cannot go on from '
                'it; start a new run from its backbone with --init-from'
            )
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        load_strictly(model, state_dict_of(checkpoint, filename), filename)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint under a temporary name, then renames it.

        A kill in the middle, or a full disk, so never leaves half a checkpoint under a name
        that somebody loads.

        Args:
            out_dir: The folder.
            filename: The checkpoint's name in it.
            args: As for ``Runner.save_checkpoint``.
            kwargs: As for ``Runner.save_checkpoint``.

        Raises:
            UserError: If the file system refuses the file.
        """
        if not isinstance(get_file_backend(out_dir), LocalBackend):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        path, temporary = os.path.join(out_dir, filename), f'{filename}.part'
        partial = os.path.join(out_dir, temporary)
        try:
            super().save_checkpoint(out_dir, temporary, *args, **kwargs)
            with open(partial, 'rb+') as file:
                os.fsync(file.fileno())  # a full network disk may say so only here
            os.replace(partial, path)
        except OSError as error:
            if os.path.lexists(partial):
                os.remove(partial)
            before = find_latest_checkpoint(out_dir)
            raise UserError(
                f'cannot write checkpoint {path}: {error.strerror}; make room or choose another '
                '--work-dir'
                + (f', then go on with --resume {before}, which is whole' if before else '')
            ) from error
