"""Cluster tokens: the formula, its gradient, and its range."""

import pytest
import torch

from clustr_mm.ops import merge_tokens


def case(dtype=torch.float64, batch=2, n=30, channels=6, m=7):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n, channels, generator=g, dtype=dtype)
    logits = torch.randn(batch, n, generator=g, dtype=dtype)
    labels = torch.randint(0, m, (batch, n), generator=g)
    return x, labels, m, logits


def by_the_formula(x, labels, m, logits):
    w = logits.exp()
    member = torch.nn.functional.one_hot(labels, m).to(x.dtype).transpose(1, 2)  # (B, M, N)
    return (member @ (w[..., None] * x)) / (member @ w[..., None] + 1e-6)


def test_is_the_formula():
    torch.testing.assert_close(merge_tokens(*case()), by_the_formula(*case()), rtol=0, atol=1e-14)


def test_single_tokens_are_w_x_over_w_plus_eps():
    x, _, _, logits = case()
    w = logits.exp()[..., None]
    out = merge_tokens(x, None, 30, logits)
    torch.testing.assert_close(out, w * x / (w + 1e-6), rtol=0, atol=1e-14)
    assert (out - x).abs().max() > 1e-7, 'not x itself'
    every = torch.arange(30).expand(2, -1)
    torch.testing.assert_close(out, merge_tokens(x, every, 30, logits), rtol=0, atol=1e-14)


def test_gradient_reaches_tokens_and_weights():
    x, labels, m, logits = case(n=12, channels=3, m=4)
    x.requires_grad_()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: merge_tokens(x, labels, m, w), (x, logits))
    assert torch.autograd.gradcheck(lambda x, w: merge_tokens(x, None, 12, w), (x, logits))


def test_an_empty_cluster_is_zero():
    x, labels, m, logits = case()
    out = merge_tokens(x, labels, m + 1, logits)
    assert (out[:, m] == 0).all()
    torch.testing.assert_close(out[:, :m], merge_tokens(x, labels, m, logits))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('shift', [0, 80, 1000, -1000])
def test_extreme_weights_stay_finite(dtype, shift):
    x, labels, m, logits = case(torch.float32)
    for labels_ in (labels, None):
        count = m if labels_ is not None else x.shape[1]
        a = x.to(dtype).requires_grad_()
        w = (logits + shift).to(dtype).requires_grad_()
        out = merge_tokens(a, labels_, count, w)
        out.float().square().sum().backward()
        assert out.dtype == dtype
        assert out.isfinite().all() and a.grad.isfinite().all() and w.grad.isfinite().all()
        if shift > 0 and labels_ is None:
            torch.testing.assert_close(out, a.detach())


def test_half_precision_error_is_that_of_rounding():
    x, labels, m, logits = case(torch.float16, n=5000, m=2)
    out = merge_tokens(x, labels, m, logits)
    exact = by_the_formula(x.double(), labels, m, logits.double())
    assert (out - exact).abs().max() <= 2**-11 * exact.abs().max() + 2**-24


def test_tokens_whose_number_is_no_clusters_are_left_out():
    x, labels, m, logits = case()
    outside = torch.arange(30) % 7 == 0
    some = labels.clone()
    some[:, outside] = torch.tensor([-1, m, m + 1, -(10**9), 10**12])
    for tensor in (x, logits):
        tensor.requires_grad_()
    out = merge_tokens(x, some, m, logits)
    expected = merge_tokens(x[:, ~outside], labels[:, ~outside], m, logits[:, ~outside])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    out.sum().backward()
    assert (x.grad[:, outside] == 0).all() and (logits.grad[:, outside] == 0).all()


def test_deterministic():
    x, labels, m, logits = case(torch.float32, n=4000, channels=64)
    first = merge_tokens(x, labels, m, logits)
    assert all(torch.equal(first, merge_tokens(x, labels, m, logits)) for _ in range(5))


def test_shapes_that_do_not_fit_are_refused():
    x, labels, m, logits = case()
    with pytest.raises(ValueError, match='weight_logits has shape'):
        merge_tokens(x, labels, m, logits[:, :5])
    with pytest.raises(ValueError, match='assignment has shape'):
        merge_tokens(x, labels[:1], m, logits)
    with pytest.raises(ValueError, match='without an assignment'):
        merge_tokens(x, None, m, logits)
