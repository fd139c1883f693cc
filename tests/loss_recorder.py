"""A hook for whole runs: what each process's losses were, step by step."""

import json
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class LossRecorder(Hook):
    """Writes ``losses_RANK.json`` into the work folder: a list of a dict of losses a step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({k: float(v) for k, v in outputs.items() if 'loss' in k})

    def after_train(self, runner):
        path = Path(runner.work_dir, f'losses_{get_rank()}.json')
        path.write_text(json.dumps(self.losses))
