"""A run that was stopped goes on as if it had not been.

mmengine brings back weights, optimizer, schedule, scaler and history. Here is the rest: chance
(samples.py), the place in the middle of an epoch, gradients that wait for their step, and a
validation that the stop came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from clustr_mm.engine.errors import UserError
from clustr_mm.engine.samples import place_batches, seed_step
from clustr_mm.engine.unwrapping import unwrapped

_DONE = 'epoch_batches_done'  # of how many, in the message hub, which every checkpoint holds
_VALIDATED = 'last_validation'  # a file in the work folder: the epoch or iteration


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's epochs, whose samples and steps have the chance of their place in the run.

    They go on from the middle of an epoch as well (checkpoints by iteration).
    """

    def run_epoch(self) -> None:
        """Runs one epoch, or what a resumed run has left of it, of batches of the same size."""
        done = self._batches_done()
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = place_batches(self.dataloader, self.runner.seed)
        batches.epoch, batches.first = self._epoch, done
        for index, batch in enumerate(self.dataloader, done):
            self._note(index + 1)
            self.run_iter(index, batch)
        self._note(0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Runs one step, seeded by its place."""
        seed_step(self.runner.seed, self._iter)
        super().run_iter(idx, data_batch)

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


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """mmengine's iterations, whose samples and steps have the chance of their place in the run.

    A resumed run does not load the samples that were done.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = _EndlessBatches(self)

    def run_iter(self, data_batch: Any) -> None:
        """Runs one step, seeded by its place."""
        seed_step(self.runner.seed, self._iter)
        super().run_iter(data_batch)


class _EndlessBatches:
    """A loader's batches from the loop's iteration on, over as many passes as it takes."""

    def __init__(self, loop: ResumableIterLoop) -> None:
        self.loop = loop
        self.skipped = 0
        self.batches: Iterator[Any] | None = None

    def skip_iter(self, count: int) -> None:
        """Leaves out the batches that a resumed run has done, as onedl's mmengine asks."""
        self.skipped = count

    def __iter__(self) -> _EndlessBatches:
        return self

    def __next__(self) -> Any:
        if self.batches is None:
            if self.skipped < self.loop.iter:  # upstream's mmengine asks for each, and drops it
                self.skipped += 1
                return None
            self.batches = self._passes(self.skipped)
        return next(self.batches)

    def _passes(self, done: int) -> Iterator[Any]:
        loader = self.loop.dataloader
        placed = place_batches(loader, self.loop.runner.seed)
        while True:
            samplers: list[Any] = [loader.sampler, getattr(placed, 'sampler', None)]
            for sampler in samplers:
                if hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch(placed.epoch)
            placed.first = done
            yield from loader
            if not placed.passed:
                raise UserError('train_dataloader gives no batch; is its data set empty?')
            done = max(0, done - placed.passed)
            placed.epoch += 1


@HOOKS.register_module()
class ResumeHook(Hook):
    """Brings back what mmengine leaves: waiting gradients, and a validation that was missed.

    Gradients that have been accumulated and not yet used are in the checkpoint. Of several
    processes each has its own, and only the first saves: there mmengine's warning at the resumption
    stands. What keeps a state of its own in the data pipeline cannot come back, and is named.
    """

    priority = 'LOWEST'  # when every other hook is ready, and has done its part of a validation

    def __init__(self) -> None:
        self._gradients: dict[str, Any] = {}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Adds the gradients that wait for their step."""
        if 'optimizer' in checkpoint and get_world_size() == 1:
            waiting = {
                name: parameter.grad.cpu()
                for name, parameter in unwrapped(runner.model).named_parameters()
                if parameter.grad is not None
            }
            if waiting:
                checkpoint['gradients'] = waiting

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keeps what was added."""
        self._gradients = checkpoint.get('gradients', {})

    def before_train(self, runner: Any) -> None:
        """Puts the gradients back, and validates where the stop came before the validation."""
        gradients, self._gradients = self._gradients, {}
        note = Path(runner.work_dir, _VALIDATED)
        if not runner._resume:
            if is_main_process():
                note.unlink(missing_ok=True)  # an earlier run's
            return
        if get_world_size() == 1:
            for name, parameter in unwrapped(runner.model).named_parameters():
                if name in gradients:
                    parameter.grad = gradients[name].to(parameter.device)
        if stateful := sorted(_stateful(runner)):
            runner.logger.warning(
                f'{", ".join(stateful)} keep what earlier batches left: this part of the run is '
                'not that of one that was never stopped.'
            )
        if runner.val_loop is not None:
            self._validate_what_was_missed(runner, note)

    def _validate_what_was_missed(self, runner: Any, note: Path) -> None:
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
        """Notes this point of the run, and not in its checkpoint, which is written before."""
        if runner._train_loop is not None and not isinstance(runner._train_loop, dict):
            Path(runner.work_dir, _VALIDATED).write_text(str(_place(runner)[0]))


def _place(runner: Any) -> tuple[int, int]:
    """Where a run is and where it ends, in what its loop counts."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return runner.epoch, runner.max_epochs
    return runner.iter, runner.max_iters


def _stateful(runner: Any) -> Iterator[str]:
    """Names parts of the training that keep a state which no checkpoint holds."""
    waiting = [runner.train_loop.dataloader.dataset]
    while waiting:
        dataset = waiting.pop()
        pipeline = getattr(dataset, 'pipeline', [])
        steps = getattr(pipeline, 'transforms', pipeline)
        for step in steps if isinstance(steps, Iterable) else ():
            if hasattr(step, 'results_cache'):  # mmdet's CachedMosaic and CachedMixUp
                yield type(step).__name__
        waiting += getattr(dataset, 'datasets', [])
        waiting += [dataset.dataset] if hasattr(dataset, 'dataset') else []
    preprocessor = getattr(unwrapped(runner.model), 'data_preprocessor', None)
    augments = getattr(preprocessor, 'batch_augments', None)
    for augment in augments if isinstance(augments, Iterable) else [augments]:
        if hasattr(augment, '_input_size'):  # the size that BatchSyncRandomResize drew last
            yield type(augment).__name__
