"""A setting's score on a small task: the same short training from scratch for every setting."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.runner import Runner

from clustr_mm.analysis.ablation.groupings import regroup
from clustr_mm.analysis.ablation.settings import KNOBS, backbone_arguments


def train_setting(
    cfg: Config, setting: str, iterations: int, work_dir: str, seed: int = 0
) -> dict[str, float]:
    """Trains a config's model under a setting, then validates it. No checkpoint is kept.

    The learning rate falls linearly to 0 after a warm-up of a tenth of the iterations; all else is
    the config's.

    Args:
        cfg: A config with an iterable train_dataloader and a ClusTR backbone; not changed.
        setting: The setting, see ``parse_setting``.
        iterations: Steps of training.
        work_dir: Where the logs go.
        seed: Of the weights and of the order of the data.

    Returns:
        The validation's metrics by name.

    Raises:
        FileNotFoundError: If the data are missing.
        ValueError: If the setting is none of ClusTR's.
    """
    cfg = Config(cfg.to_dict())
    # A setting differs from the exact global form, whatever the config says.
    given = {key: value for key, value in cfg.model.backbone.items() if key not in KNOBS}
    backbone, grouping = backbone_arguments(given, setting)
    cfg.model.backbone = backbone
    cfg.work_dir = work_dir
    # Two runs within a second would share a name, and with it their logs.
    cfg.experiment_name = f'{setting}_{seed}_{id(cfg)}'
    cfg.randomness = dict(seed=seed)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop',
        max_iters=iterations,
        val_begin=iterations + 1,  # validated once, below
    )
    warm_up = iterations // 10
    cfg.param_scheduler = [
        dict(type='PolyLR', power=1.0, eta_min=0, begin=warm_up, end=iterations, by_epoch=False),
    ]
    if warm_up > 0:
        warming = dict(type='LinearLR', start_factor=0.01, begin=0, end=warm_up, by_epoch=False)
        cfg.param_scheduler.insert(0, warming)
    cfg.log_processor = dict(by_epoch=False)
    cfg.setdefault('default_hooks', {})['checkpoint'] = None
    cfg.visualizer = None
    runner = Runner.from_cfg(cfg)
    if grouping is not None:
        regroup(runner.model.backbone, grouping)
    runner.train()
    return runner.val()
