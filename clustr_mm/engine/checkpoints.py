"""Checkpoints of a run: kept until there is a newer one, and the newest whole one found."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from clustr_mm.engine.errors import UserError
from clustr_mm.weights.files import CheckpointError, read_checkpoint, replace_durably

# What a run goes on from; the best checkpoints hold no optimizer.
_STEP = re.compile(r'(?!best_).*_(\d+)\.pth')
_TRAINING_STATE = {'meta', 'message_hub', 'optimizer'}


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes an old checkpoint once the new one is there.

    mmengine removes first: killed in between, a run with ``max_keep_ckpts=1`` has none left, and
    any run loses its best. ``last_checkpoint`` is replaced whole, too. Arguments are
    CheckpointHook's.
    """

    file_backend: Any

    def before_train(self, runner: Any) -> None:
        """Removes what a killed run was writing.

        Args:
            runner: The runner of the training.
        """
        super().before_train(runner)
        if is_main_process() and self.file_backend.isdir(self.out_dir):
            for name in list(self.file_backend.list_dir_or_file(self.out_dir)):
                if name.endswith('.pth.part'):
                    _remove(self.file_backend, self.file_backend.join_path(self.out_dir, name))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        note = os.path.join(runner.work_dir, 'last_checkpoint')
        with open(f'{note}.part', 'w') as file:
            file.write(str(self.last_ckpt))
        replace_durably(f'{note}.part', note)
        for each in outdated:
            _remove(self.file_backend, self.file_backend.join_path(self.out_dir, each))

    def _save_best_checkpoint(self, runner: Any, metrics: Mapping[str, float]) -> None:
        for name in self.key_indicators if self.save_best and metrics else ():
            if name != 'auto' and name not in metrics:
                raise UserError(
                    f'save_best is {name!r}, which this validation does not give; set '
                    f'default_hooks.checkpoint.save_best to one of {", ".join(sorted(metrics))}'
                )
        backend, self.file_backend = self.file_backend, _RemovesLater(self.file_backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            outdated, self.file_backend = self.file_backend.outdated, backend
        best = {
            runner.message_hub.get_info(key)
            for key in runner.message_hub.runtime_info
            if key.startswith('best_ckpt')
        }
        for each in outdated - best:  # the same name again is the new best
            _remove(backend, each)


class _RemovesLater:
    """A file backend that only notes what it is to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.outdated: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated.add(path)

    rmtree = remove


def agree_on_start(runner: Any, find: Callable[[str], str | None]) -> None:
    """Settles, for all processes alike, whether a runner goes on and from which checkpoint.

    Args:
        runner: The runner, before it loads. What the first process was asked for holds for all:
            after a restart of several machines only some of them know of it.
        find: Finds the checkpoint in the work folder where none is named.

    Raises:
        UserError: As ``find`` does.
    """
    if runner._has_loaded:
        return
    asked = [runner._resume, runner._load_from]
    broadcast_object_list(asked)
    runner._resume, runner._load_from = asked
    if runner._resume and runner._load_from is None:
        runner._load_from = find(runner.work_dir)
        if runner._load_from is None:
            runner._resume = False
            runner.logger.info(f'No checkpoint in {runner.work_dir} yet: the run starts.')
    if runner._resume:
        runner.logger.warning(f'The run goes on from {runner._load_from}.')


def warn_of_random_weights(runner: Any) -> None:
    """Says so where a model starts from random weights.

    Args:
        runner: The runner, once it has loaded what it was asked to.
    """
    pretrained = any(
        isinstance(cfg := getattr(module, 'init_cfg', None), dict)
        and cfg.get('type') == 'Pretrained'
        for module in runner.model.modules()
    )
    if not runner._has_loaded and not pretrained:
        runner.logger.warning(
            'The model starts from random weights: no pretrained ClusTR weights are public. '
            '--init-from CKPT starts the backbone from a checkpoint.'
        )


def newest_checkpoint(folder: str) -> str | None:
    """Finds the newest whole checkpoint in a folder, for all processes.

    Args:
        folder: The run's work folder.

    Returns:
        What ``find_newest`` finds in the first process.

    Raises:
        UserError: As ``find_newest`` does.
    """
    answer: list[Any] = [None]
    if is_main_process():
        try:
            answer = [find_newest(Path(folder))]
        except UserError as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]


def find_newest(folder: Path) -> str | None:
    """Finds the newest whole checkpoint that a run in a folder can go on from.

    That is the one that ``last_checkpoint`` names, unless a later one was written after it: times
    alone mean nothing in a folder that was copied. Every file is read and verified. One that is
    damaged is named in a line of the log, and the one before it is taken.

    Args:
        folder: The run's work folder.

    Returns:
        Its path; None where nothing was saved yet.

    Raises:
        UserError: If there are checkpoints and none is whole.
    """
    note = folder / 'last_checkpoint'
    folders, noted = {folder}, None
    if note.is_file() and (text := note.read_text(errors='replace').strip()):
        noted = Path(text)
        folders.add(noted.parent)
    found = {
        path
        for each in folders
        if each.is_dir()
        for path in each.iterdir()
        if path.is_file() and (_STEP.fullmatch(path.name) or path == noted)
    }
    faults = []
    # By time, for a folder can hold a longer run's older checkpoints.
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if noted in found:
        place = newest_first.index(noted)
        later = [path for path in newest_first[:place] if _number(path) > _number(noted)]
        before = [path for path in newest_first if path != noted and path not in later]
        newest_first = [*later, noted, *before]
    for path in newest_first:
        try:
            check_training_state(read_checkpoint(path), str(path))
            return str(path)
        except (CheckpointError, UserError) as error:
            print_log(f'passed over: {error}', logger='current', level=30)  # WARNING
            faults.append(path.name)
    if faults or noted is not None:
        what = f'{", ".join(faults)} cannot be used' if faults else f'{noted} is not there'
        raise UserError(
            f'--resume finds no whole checkpoint in {folder}: {what}; give one by --resume CKPT, '
            'or start anew in another --work-dir'
        )
    return None


def check_training_state(checkpoint: Mapping[str, Any], source: str) -> None:
    """Sees that a run can go on from a checkpoint.

    Args:
        checkpoint: What was read.
        source: Where from, for the error.

    Raises:
        UserError: If it holds weights only.
    """
    meta = checkpoint.get('meta')
    if not (
        set(checkpoint) >= _TRAINING_STATE
        and isinstance(meta, Mapping)
        and isinstance(meta.get('epoch'), int)
        and isinstance(meta.get('iter'), int)
    ):
        raise UserError(
            f'{source} holds weights but no training state, so --resume cannot go on from it; '
            'start a new run from its backbone with --init-from'
        )


def _number(path: Path) -> int:
    """The epoch or iteration in a checkpoint's name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def _remove(backend: Any, path: str) -> None:
    """Removes a checkpoint: a file, or a folder such as DeepSpeed writes."""
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):
        backend.rmtree(path)
