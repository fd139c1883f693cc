"""What is small enough for a test: a narrow ClusTR, and checkpoints of untrained models."""

from pathlib import Path

import torch

# With everything that the published variants have.
NARROW = dict(
    embed_dims=(16, 32, 48, 64),
    depths=(1, 2, 3, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(2, 2, 2, 2),
    reductions=(8, 4, 2, 1),
)


def write_checkpoint(config: str | Path, path: str | Path) -> None:
    """Writes a config's model with random weights, as training writes one."""
    from mmengine.config import Config  # the tests of ops and models have torch alone
    from mmengine.registry import DATASETS, MODELS, DefaultScope

    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        meta = DATASETS.build({**cfg.test_dataloader.dataset, 'lazy_init': True}).metainfo
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta)), path)
