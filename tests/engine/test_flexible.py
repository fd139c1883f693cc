"""What a strategy of several processes takes over from the optimizer's wrapper."""

import pytest
from mmengine.config import Config

from clustr_mm.engine import UserError
from clustr_mm.engine.flexible import _use_deepspeed_optimizer


def deepspeed(**clip) -> Config:
    wrapper = dict(type='OptimWrapper', clip_grad=clip)
    return Config(dict(optim_wrapper=wrapper, strategy=dict(type='StrictDeepSpeedStrategy')))


def test_deepspeed_clips_the_norm_and_nothing_else():
    cfg = deepspeed(max_norm=2.0)
    _use_deepspeed_optimizer(cfg)
    assert cfg.strategy.gradient_clipping == 2.0
    with pytest.raises(UserError, match='max_norm'):
        _use_deepspeed_optimizer(deepspeed(type='value', clip_value=1.0))
