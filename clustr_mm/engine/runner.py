"""mmengine's Runner with the three things that it only warns about, or does not do.

A checkpoint that does not fit stops the run, a checkpoint is on disk whole or not at all, and
several processes run without a GPU.
"""

import os
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from clustr_mm.engine.checkpoints import (
    agree_on_start,
    check_training_state,
    find_newest,
    newest_checkpoint,
    warn_of_random_weights,
)
from clustr_mm.engine.devices import replace_sync_batchnorm, start_cpu_processes
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.unwrapping import unwrapped
from clustr_mm.weights.files import (
    CheckpointError,
    load_strictly,
    read_checkpoint,
    replace_durably,
    state_dict_of,
)


@RUNNERS.register_module()
class StrictRunner(Runner):
    """A Runner that loads strictly, saves whole files, and runs several processes on a CPU."""

    _resume: bool
    _load_from: str | None
    _has_loaded: bool

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
        """Loads what the config names, and says so where a model starts from random weights.

        Raises:
            UserError: If a run is to go on and none of its checkpoints is whole.
        """
        agree_on_start(self, newest_checkpoint)
        super().load_or_resume()
        warn_of_random_weights(self)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Goes on from a checkpoint.

        Args:
            filename: Path of the checkpoint, or its http(s) address.
            args: As for ``Runner.resume``.
            kwargs: As for ``Runner.resume``.

        Raises:
            UserError: If its optimizer or schedule is not this config's.
        """
        try:
            super().resume(filename, *args, **kwargs)
        except CheckpointError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = ' '.join(str(error).split())
            raise UserError(
                f'{filename} was saved with another optimizer or schedule ({reason}); go on with '
                'the config that it was saved with, or start anew with --init-from'
            ) from error

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint, all of it or none, and runs nothing that it contains.

        Args:
            filename: Path of the checkpoint, or its http(s) address.
            args: Not used.
            kwargs: Not used.

        Returns:
            dict: The checkpoint, on the CPU.

        Raises:
            CheckpointError: If the file is missing, is no checkpoint, or does not fit the model.
            UserError: If a run is to go on from a file that holds weights only.
        """
        checkpoint = read_checkpoint(filename)
        if self._resume:
            check_training_state(checkpoint, filename)
            # Old versions of mmengine kept a config there, and resuming runs it.
            checkpoint['meta'].pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        load_strictly(unwrapped(self.model), state_dict_of(checkpoint, filename), source=filename)
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
            replace_durably(partial, path)
        except OSError as error:
            if os.path.lexists(partial):
                os.remove(partial)
            try:
                before = find_newest(Path(out_dir))
            except UserError:
                before = None
            raise UserError(
                f'cannot write checkpoint {path}: {error.strerror}; make room or choose another '
                '--work-dir'
                + (f', then go on with --resume {before}, which is whole' if before else '')
            ) from error
