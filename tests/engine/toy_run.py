"""A model of one layer with chance in data and model, so that whole runs take no time."""

import copy
import itertools
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

from clustr_mm.engine import checkpoints, resuming  # noqa: F401 - they register
from clustr_mm.engine.runner import ToolRunner

_RUNS = itertools.count()
VALIDATION = dict(
    val_cfg=dict(),
    val_dataloader=dict(
        batch_size=4,
        dataset=dict(type='NoisyRows', length=4),
        sampler=dict(type='DefaultSampler', shuffle=False),
    ),
    val_evaluator=dict(type='RisingScore'),
)


@DATASETS.register_module()
class NoisyRows(Dataset):
    """Rows of their index, with noise from NumPy as transforms make it."""

    metainfo = dict(classes=('row',))

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.from_numpy(np.random.rand(3).astype(np.float32))
        return dict(inputs=noise + index, index=index)

    def __len__(self) -> int:
        return self.length


@MODELS.register_module()
class DroppingLayer(BaseModel):
    """A linear layer behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, index, mode='loss'):
        out = self.layer(torch.dropout(torch.stack(inputs), 0.5, self.training))
        return dict(loss=out.square().mean()) if mode == 'loss' else [dict(score=1.0)]


@METRICS.register_module()
class RisingScore(BaseMetric):
    """A score that is higher at every validation of a process."""

    values = itertools.count()

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(acc=float(next(self.values)))


@METRICS.register_module()
class FlatScore(RisingScore):
    """A score that is the same at every validation."""

    values = itertools.repeat(1)


def make_config(folder, epochs: bool, saving: dict[str, Any] | None = None, **changes: Any):
    """A run of 12 steps: 12 iterations, or 3 epochs of 4."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type='NoisyRows', length=8),
        sampler=dict(type='DefaultSampler' if epochs else 'InfiniteSampler', shuffle=True),
    )
    loop = dict(type='ResumableEpochLoop', max_epochs=3)
    if not epochs:
        loop = dict(type='ResumableIterLoop', max_iters=12)
    cfg = Config(
        dict(
            model=dict(type='DroppingLayer'),
            work_dir=str(folder),
            experiment_name=f'toy{next(_RUNS)}',  # runs of one second share their log otherwise
            train_dataloader=loader,
            train_cfg=loop,
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            param_scheduler=dict(type='ExponentialLR', gamma=0.9, by_epoch=False),
            default_hooks=dict(
                checkpoint=dict(
                    type='SafeCheckpointHook', by_epoch=False, interval=1, **saving or {}
                ),
                resume=dict(type='ResumeHook'),
            ),
            randomness=dict(seed=3),
            default_scope='mmengine',
            log_level='WARNING',
        )
    )
    cfg.merge_from_dict(copy.deepcopy(changes))  # it sets keys in what is shared, too
    return cfg


def run(cfg: Config) -> Any:
    """Trains with the tools' runner."""
    runner = ToolRunner.from_cfg(cfg)
    runner.train()
    return runner
