"""The class-weighted loss is the library's, where the library's works."""

import pytest
import torch

from clustr_mm import ClassWeightedCrossEntropy

WEIGHTS = [1.0, 3.0, 0.5]


def example():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    label = torch.randint(0, 3, (2, 5, 7))
    label[0, :2] = 255
    return logits, label


@pytest.mark.parametrize('sampled', [False, True])
def test_equals_the_library(sampled):
    from mmseg.models.losses import CrossEntropyLoss

    logits, label = example()
    weight = torch.rand(label.shape) if sampled else None
    ours = ClassWeightedCrossEntropy(WEIGHTS, loss_weight=0.4)
    theirs = CrossEntropyLoss(class_weight=WEIGHTS, loss_weight=0.4)
    a = ours(logits, label, weight=weight, ignore_index=255)
    b = theirs(logits, label, weight=weight, ignore_index=255)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        torch.autograd.grad(a, logits), torch.autograd.grad(b, logits), rtol=1e-5, atol=1e-7
    )
    assert ours.loss_name == theirs.loss_name


def test_nothing_but_ignored_pixels_is_zero():
    logits, label = example()
    loss = ClassWeightedCrossEntropy(WEIGHTS)(logits, torch.full_like(label, 255))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
