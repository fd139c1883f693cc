"""Checkpoints of a run: whole or not there, kept until there is a newer one, the newest found."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
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
    """mmengine's CheckpointHook, whose files are whole, and which removes the old one last.

    mmengine writes in place and removes first: killed in between, a run with ``max_keep_ckpts=1``
    has no whole file left, and any run loses its best. What another run wrote, from whose work
    folder this one goes on, stays. Arguments are CheckpointHook's.
    """

    file_backend: Any

    def before_train(self, runner: Any) -> None:
        """Removes what a killed run was writing."""
        super().before_train(runner)
        if is_main_process() and self.file_backend.isdir(self.out_dir):
            for name in list(self.file_backend.list_dir_or_file(self.out_dir)):
                if name.endswith('.pth.part'):
                    self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        with _RemovesLast(self, runner):
            super()._save_checkpoint_with_step(_WholeFiles(runner), step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: Mapping[str, float]) -> None:
        for name in self.key_indicators if self.save_best and metrics else ():
            if name != 'auto' and name not in metrics:
                raise UserError(
                    f'save_best is {name!r}, which this validation does not give; set '
                    f'default_hooks.checkpoint.save_best to one of {", ".join(sorted(metrics))}'
                )
        with _RemovesLast(self, runner):
            super()._save_best_checkpoint(_WholeFiles(runner), metrics)


class _WholeFiles:
    """A runner whose checkpoints get their name when they are whole."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if not isinstance(get_file_backend(out_dir), LocalBackend):
            self.runner.save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        path = os.path.join(out_dir, filename)
        partial = f'{path}.part'
        try:
            self.runner.save_checkpoint(out_dir, f'{filename}.part', *args, **kwargs)
            if is_main_process():
                replace_durably(partial, path)
        except OSError as error:
            if os.path.lexists(partial):
                os.remove(partial)
            raise UserError(
                f'cannot write checkpoint {path}: {error.strerror}; make room or choose another '
                f'--work-dir{_way_on(Path(out_dir))}'
            ) from error


class _RemovesLast:
    """A hook's file backend that removes checkpoints when the new one is written.

    Only this run's own: in the hook's folder, and not one that has since got the same name.
    """

    def __init__(self, hook: SafeCheckpointHook, runner: Any) -> None:
        self.hook = hook
        self.runner = runner
        self.outdated: list[str] = []

    def __enter__(self) -> None:
        self.backend, self.hook.file_backend = self.hook.file_backend, self

    def __exit__(self, kind: object, *_: object) -> None:
        self.hook.file_backend = self.backend
        known = self.runner.message_hub.runtime_info
        kept = {known[key] for key in known if key.startswith(('best_ckpt', 'last_ckpt'))}
        for path in self.outdated if kind is None else ():
            if path not in kept and os.path.dirname(path) == str(self.hook.out_dir).rstrip('/'):
                remove = self.backend.remove if self.backend.isfile(path) else self.backend.rmtree
                remove(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove


def newest_checkpoint(folder: str) -> str | None:
    """What ``find_newest`` finds, or raises, in the first process, for all processes."""
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
    alone mean nothing in a folder that was copied. One that is damaged is named in a line of the
    log, and the one before it is taken. None where nothing was saved yet; where there are
    checkpoints and none is whole, a ``UserError``.
    """
    note = folder / 'last_checkpoint'
    noted: Path | None = None
    if note.is_file() and (text := note.read_text(errors='replace').strip()):
        if '://' in text:  # another backend's: only that knows more
            return text
        noted = Path(text)
        if (folder / noted.name).is_file():  # the folder was copied: what is beside the note
            noted = folder / noted.name
    found = {
        path
        for each in {folder, noted.parent if noted else folder}
        if each.is_dir()
        for path in each.iterdir()
        if path.is_file() and (_STEP.fullmatch(path.name) or path == noted)
    }
    faults = []
    # By time, for a folder can hold a longer run's older checkpoints.
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if noted in found:
        newer = newest_first[: newest_first.index(noted)]
        later = [path for path in newer if _number(path) > _number(noted)]
        newest_first = [*dict.fromkeys([*later, noted, *newest_first])]
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
    """Sees that a run can go on from what was read: that it holds more than weights."""
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


def _way_on(folder: Path) -> str:
    """Says from which checkpoint a run goes on that could not write the next."""
    try:
        before = find_newest(folder)
    except UserError:
        before = None
    return f', then go on with --resume {before}, which is whole' if before else ''
