"""Models side by side: steps do what they say, timings are ratios to the baseline."""

import sys

import pytest
import torch
from torch import nn

from clustr_mm import ClusTR
from clustr_mm.analysis.peers import PEERS, build_backbone
from clustr_mm.analysis.speed import backbone_step, compare, model_step
from clustr_mm.analysis.tasks import build_task, make_batch, why_not_task
from clustr_mm.engine import UserError

CPU = torch.device('cpu')


class Deep(nn.Module):
    """A product of (side, side) matrices, some times."""

    def __init__(self, times: int, side: int = 256) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(side, side) / side**0.5)
        self.times = times

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for _ in range(self.times):
            images = images @ self.weight
        return (images,)


@pytest.mark.parametrize('train', [False, True])
def test_times_are_ratios_to_the_baseline(train):
    images = torch.randn(4, 3, 256, 256)
    steps = {f'{n}': backbone_step(Deep(n), images, train) for n in (12, 3)}
    timings = compare(steps, '3', rounds=5)
    assert timings['3'].ratio == timings['3'].cpu_ratio == 1
    assert 2 < timings['12'].cpu_ratio < 8  # four times the work, on a busy machine
    for timing in timings.values():
        assert 0 < timing.fastest <= timing.latency == timing.seconds
    if sys.platform == 'linux':
        assert timings['12'].peak_mib >= (3 if train else 1) * 0.25  # the weights at least
        assert train is (timings['12'].peak_mib > 12 * 3)  # activations stay for the backward


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_training_step_runs_the_optimizer_and_leaves_the_weights(dtype):
    model = Deep(2, 16)
    before = model.weight.detach().clone()
    step = backbone_step(model, torch.randn(1, 3, 16, 16), True, dtype)
    step.run()
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, before)
    (state,) = step.optimizer.state.values()
    assert state['exp_avg'].abs().sum() > 0, 'a gradient has come'
    assert model.weight.grad is None
    assert step.held_mib() == pytest.approx(3 * 16 * 16 * 4 / 2**20, rel=0.02)


def test_inference_is_in_the_dtype():
    step = backbone_step(ClusTR(arch='tiny'), torch.randn(1, 3, 32, 32), False, torch.bfloat16)
    maps = step.run()
    assert [m.dtype for m in maps] == [torch.bfloat16] * 4
    assert not any(m.requires_grad for m in maps)


def test_compiled_models_give_the_same():
    images = torch.randn(1, 3, 16, 16)
    model = Deep(2, 16)
    (eager,) = backbone_step(model, images, False).run()
    (compiled,) = backbone_step(model, images, False, compile_mode='aot_eager').run()
    torch.testing.assert_close(compiled, eager)


def test_backbones_by_name():
    model, library = build_backbone('clustr_t+recluster_every=0', (32, 32))
    assert library == 'clustr_mm' and model.stages[0].recluster_every == 0
    with pytest.raises(UserError, match="model is 'vgg'; use one of clustr_t"):
        build_backbone('vgg', (32, 32))
    with pytest.raises(UserError, match='model clustr_t.colour=1.*colour'):
        build_backbone('clustr_t+colour=1', (32, 32))


@pytest.mark.parametrize('name', list(PEERS))
def test_peers_have_the_channels_that_heads_are_given(name):
    pytest.importorskip('mmdet')
    model, library = build_backbone(name, (64, 64))
    maps = model(torch.randn(1, 3, 64, 64))
    assert library == 'mmdet'
    assert tuple(m.shape[1] for m in maps) == PEERS[name].channels


def test_a_whole_model_with_another_backbone_trains():
    pytest.importorskip('mmseg')
    assert why_not_task('upernet', CPU) is None
    shape = (32, 64)
    model = build_task('upernet', 'swin_t', shape)
    assert type(model.backbone).__name__ == 'SwinTransformer'
    step = model_step(model, make_batch('upernet', 2, shape, CPU), True)
    step.run()
    assert len(step.optimizer.state) == sum(1 for p in model.parameters() if p.requires_grad)


def test_detectors_keep_the_configs_clustering_unless_told():
    pytest.importorskip('mmdet')
    assert why_not_task('mask_rcnn', CPU) is None
    default = build_task('mask_rcnn', 'clustr_t', (64, 64))
    assert default.backbone.crop_padding
    assert default.backbone.stages[0].blocks[0].attn.cluster_window == 56
    step = model_step(default, make_batch('mask_rcnn', 1, (64, 64), CPU), False)
    (result,) = step.run()
    assert result.pred_instances.bboxes.shape[1] == 4
    exact = build_task('mask_rcnn', 'clustr_t+cluster_window=None', (64, 64))
    assert exact.backbone.stages[0].blocks[0].attn.cluster_window is None
    other = build_task('mask_rcnn', 'resnet50', (64, 64))
    assert other.neck.in_channels == [256, 512, 1024, 2048]
