"""A run that was stopped goes on as if it had not been.

mmengine brings back weights, optimizer, schedule, scaler and history. Here is the rest: chance
(seeding.py), the place in the middle of an epoch, gradients that wait for their step, and a
validation that the stop came before.
"""

import itertools
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler

from clustr_mm.datasets.transforms import type_name
from clustr_mm.engine import checkpoints  # noqa: F401 - it registers
from clustr_mm.engine.config import add_hook
from clustr_mm.engine.errors import UserError
from clustr_mm.engine.seeding import SeededSampler
from clustr_mm.engine.unwrapping import unwrapped

_DONE = 'epoch_batches_done'  # of how many, in the message hub, which every checkpoint holds
_VALIDATED = 'last_validation'  # a file in the work folder: the epoch or iteration


def make_resumable(cfg: Config) -> None:
    """Makes a training config's run one that loses nothing but steps since its newest checkpoint.

    Args:
        cfg: The config, changed in place: its names of mmengine's own parts become ours.
    """
    loader = cfg.train_dataloader
    if not _is(loader.dataset, 'SeededDataset'):
        loader.dataset = dict(type='SeededDataset', dataset=loader.dataset)
        loader.sampler = dict(type='SeededSampler', sampler=loader.sampler)
    loop = cfg.train_cfg
    if _is(loop, 'EpochBasedTrainLoop') or loop.get('by_epoch'):
        loop.pop('by_epoch', None)
        loop.type = 'ResumableEpochLoop'
    hooks = cfg.setdefault('default_hooks', {})
    saving = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if saving is not None and _is(saving, 'CheckpointHook'):
        saving.type = 'SafeCheckpointHook'
    for name in ('SeedHook', 'ResumeHook', 'MissedValidationHook'):
        add_hook(cfg, dict(type=name))


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's epochs, which go on from the middle of one as well (checkpoints by iteration)."""

    def run_epoch(self) -> None:
        """Runs one epoch, or what a resumed run has left of it.

        Raises:
            UserError: If the batches have another size than those that were done.
        """
        done = self._batches_done()
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self._batches_after(done), done):
            self._note(index + 1)
            self.run_iter(index, batch)
        self._note(0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _note(self, done: int) -> None:
        self.runner.message_hub.update_info(_DONE, [done, len(self.dataloader)])

    def _batches_done(self) -> int:
        if _DONE not in self.runner.message_hub.runtime_info:
            return 0
        done, total = self.runner.message_hub.get_info(_DONE)
        if done and total != len(self.dataloader):
            raise UserError(
                f'the checkpoint was saved after {done} of an epoch of {total} batches, and here '
                f'an epoch has {len(self.dataloader)}; go on with the same batch size, processes '
                'and data, or from the end of an epoch'
            )
        return done

    def _batches_after(self, done: int) -> Any:
        batches = self.dataloader.batch_sampler
        if type(batches) is BatchSampler and isinstance(batches.sampler, SeededSampler):
            batches.sampler.start_at(done * batches.batch_size)
            return self.dataloader
        # Which samples other batch samplers put together is known only when they have done so.
        return itertools.islice(self.dataloader, done, None)


@HOOKS.register_module()
class ResumeHook(Hook):
    """Keeps gradients that wait for their step."""

    def __init__(self) -> None:
        self._gradients: dict[str, Any] = {}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Adds the gradients that have been accumulated and not yet used.

        Of several processes each has its own, and only the first saves: there mmengine's warning
        at the resumption stands.

        Args:
            runner: The runner of the training.
            checkpoint: What is saved.
        """
        if 'optimizer' in checkpoint and get_world_size() == 1:
            waiting = {
                name: parameter.grad.cpu()
                for name, parameter in unwrapped(runner.model).named_parameters()
                if parameter.grad is not None
            }
            if waiting:
                checkpoint['gradients'] = waiting

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keeps what was added.

        Args:
            runner: The runner of the training.
            checkpoint: What was read.
        """
        self._gradients = checkpoint.get('gradients', {})

    def before_train(self, runner: Any) -> None:
        """Puts the gradients back.

        Args:
            runner: The runner of the training.
        """
        if runner._resume and get_world_size() == 1:
            for name, parameter in unwrapped(runner.model).named_parameters():
                if name in self._gradients:
                    parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validates before the training goes on, where the stop came before the validation."""

    priority = 'LOWEST'  # when every other hook is ready, and has done its part of a validation

    def before_train(self, runner: Any) -> None:
        """Validates, if this point of the run asks for it and has not been validated.

        Args:
            runner: The runner of the training.
        """
        note = Path(runner.work_dir, _VALIDATED)
        if not runner._resume or runner.val_loop is None:
            if is_main_process():
                note.unlink(missing_ok=True)  # an earlier run's
            return
        validated = [note.read_text() if is_main_process() and note.is_file() else '']
        broadcast_object_list(validated)
        loop, known = runner.train_loop, runner.message_hub.runtime_info
        loop._decide_current_val_interval()
        reached, end = _place(runner)
        in_an_epoch = known.get(_DONE, [0])[0] > 0
        due = reached >= loop.val_begin and (reached % loop.val_interval == 0 or reached == end)
        if due and not in_an_epoch and validated != [str(reached)]:
            runner.logger.info('Validating, which the stop came before.')
            runner.val_loop.run()

    @master_only
    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """Notes that this point of the run has been validated.

        Not in the checkpoint, which is written before the validation.

        Args:
            runner: The runner of the training.
            metrics: Not used.
        """
        if runner._train_loop is not None and not isinstance(runner._train_loop, dict):
            Path(runner.work_dir, _VALIDATED).write_text(str(_place(runner)[0]))


def _is(part: dict, name: str) -> bool:
    """Whether a part of a config is of a type, named with or without its library, or given."""
    return type_name(part.get('type', '')) == name


def _place(runner: Any) -> tuple[int, int]:
    """Where a run is and where it ends, in what its loop counts."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return runner.epoch, runner.max_epochs
    return runner.iter, runner.max_iters
