"""The clock: memory is what a call takes at most, times are ratios to the baseline."""

import sys
import time

import pytest
import torch
from torch import nn

from clustr_mm.analysis.peers import PEERS, build_backbone
from clustr_mm.analysis.speed import backbone_step, compare, peak_memory, time_call

CPU = torch.device('cpu')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


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


@linux
def test_peak_memory_is_above_what_was_in_use():
    held = torch.ones(200, 2**18)
    result, peak = peak_memory(lambda: int(torch.ones(64, 2**18)[0, 0]), CPU)
    assert result == 1 and held.shape[0] == 200
    assert 60 <= peak <= 80


@linux
def test_memory_that_was_freed_before_hides_no_peak():
    # Small pieces, which malloc keeps when they are freed.
    pieces = [torch.ones(2**10) for _ in range(40_000)]  # 160 MB
    del pieces
    _, peak = peak_memory(lambda: [torch.ones(2**10) for _ in range(20_000)], CPU)
    assert 70 <= peak <= 110


def test_a_call_that_waits_takes_no_processor():
    wall, processor = time_call(lambda: time.sleep(0.1), CPU, times=2)
    assert 0.1 <= wall and processor < 0.05


@pytest.mark.parametrize('train', [False, True])
def test_times_are_ratios_to_the_baseline(train):
    images = torch.randn(4, 3, 256, 256)
    steps = {f'{n}': backbone_step(Deep(n), images, train) for n in (12, 3)}
    timings = compare(steps, '3', rounds=5)
    assert timings['3'].ratio == timings['3'].cpu_ratio == 1
    assert 2 < timings['12'].cpu_ratio < 8  # four times the work, on a busy machine
    assert all(timing.seconds > 0 for timing in timings.values())
    if sys.platform == 'linux':
        assert timings['12'].peak_mib >= (3 if train else 1) * 0.25  # the weights at least
        assert train is (timings['12'].peak_mib > 12 * 3)  # activations stay for the backward


@pytest.mark.parametrize('amp', [None, torch.bfloat16])
def test_a_training_step_runs_the_optimizer_and_leaves_the_weights(amp):
    model = Deep(2, 16)
    before = model.weight.detach().clone()
    step = backbone_step(model, torch.randn(1, 3, 16, 16), True, amp)
    step.run()
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, before)
    (state,) = step.optimizer.state.values()
    assert state['exp_avg'].abs().sum() > 0, 'a gradient has come'
    assert step.held_mib() == pytest.approx(3 * 16 * 16 * 4 / 2**20, rel=0.02)


def test_inference_needs_no_gradient_and_takes_autocasts_precision():
    (map_,) = backbone_step(Deep(1, 16), torch.randn(1, 3, 16, 16), False, torch.bfloat16).run()
    assert map_.dtype == torch.bfloat16 and not map_.requires_grad


def test_backbones_by_name():
    model, library = build_backbone('clustr_t+recluster_every=0', (32, 32))
    assert library == 'clustr_mm' and model.stages[0].recluster_every == 0
    with pytest.raises(ValueError, match="model is 'vgg'; use one of clustr_t"):
        build_backbone('vgg', (32, 32))
    with pytest.raises(ValueError, match='model clustr_t.colour=1.*colour'):
        build_backbone('clustr_t+colour=1', (32, 32))


@pytest.mark.parametrize('name', list(PEERS))
def test_peers_return_the_maps_at_strides_4_to_32(name):
    try:
        model, _ = build_backbone(name, (64, 64))
    except ValueError as error:
        pytest.skip(str(error))
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]
