"""What a step moves on a GPU: by hand for small models, and plausible for real ones."""

import pytest
import torch
from small import NARROW
from torch import nn

from clustr_mm import ClusTR
from clustr_mm.analysis.kernels import Ceilings
from clustr_mm.analysis.traffic import count_step

pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)

ONE = Ceilings(operations=1.0, bytes=1.0)


class Maps(nn.Module):
    """A backbone of some layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return (self.layers(x),)


def test_an_operator_moves_its_inputs_and_outputs():
    step = count_step(Maps(nn.GELU()), (2, 4, 5), train=False)
    (name,) = step.shares
    share = step.shares[name]
    assert name == 'aten.gelu' and share.calls == 1
    assert share.bytes == 2 * (2 * 3 * 4 * 5) * 2  # float16
    assert step.peak_bytes == share.bytes


def test_views_move_nothing():
    step = count_step(Maps(nn.Flatten(), nn.Unflatten(1, (3, 20))), (2, 4, 5), train=False)
    assert step.whole.calls == 0


@pytest.mark.parametrize(('groups', 'inputs'), [(1, 6), (6, 1)])
def test_operations_of_convolutions(groups, inputs):
    model = Maps(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=groups))
    step = count_step(model, (2, 4, 5), train=False, ceilings=ONE)
    assert step.whole.operations == 2 * 2 * 20 * (3 * 6 + 9 * 6 * inputs)
    assert step.whole.seconds >= step.whole.operations


def test_a_training_step_computes_three_times_as_much():
    model = Maps(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1))
    infer = count_step(model, (2, 8, 8), train=False).whole
    model = Maps(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1))
    train = count_step(model, (2, 8, 8), train=True)
    image_gradient = 2 * 2 * 64 * 9 * 3 * 6  # which nobody asks for
    assert train.whole.operations in (
        3 * infer.operations,
        3 * infer.operations - image_gradient,
    )
    assert any(name.startswith('aten._foreach') for name in train.shares)


@pytest.mark.parametrize('train', [False, True])
def test_clustr_runs_as_on_a_gpu(train):
    blocks = sum(NARROW['depths'])
    step = count_step(ClusTR(arch=NARROW), (2, 64, 96), train)
    calls = {name: share.calls for name, share in step.shares.items()}
    assert calls['clustr_mm.conv_gelu'] == blocks and calls['clustr_mm.add_norm'] == 2 * blocks
    # Clusters are of the first three stages; the third has a fine scale of all tokens.
    assert calls['clustr_mm.dpc_knn'] == 6
    assert calls['clustr_mm.merge_tokens'] == 6
    assert calls['clustr_mm.attend'] == blocks
    assert ('clustr_mm.conv_gelu_backward' in calls) is train
    assert not any('topk' in name or 'cdist' in name for name in calls)


def test_what_lives_longest_is_the_peak():
    wide = count_step(Maps(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 3, 1)), (1, 32, 32), train=False)
    images, hidden = 3 * 32 * 32 * 2, 64 * 32 * 32 * 2
    weights = 2 * (3 * 64 + 64 + 64 * 3 + 3)
    assert wide.peak_bytes == images + hidden + images + weights
