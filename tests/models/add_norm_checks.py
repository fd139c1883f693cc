"""Checks of the residual sum's kernels; ``test_add_norm.py`` runs them in a process of their own.

On a CPU they need TRITON_INTERPRET=1 before triton is imported, which nothing else should see:

    TRITON_INTERPRET=1 pytest tests/models/add_norm_checks.py
"""

import os

import pytest
import torch
from torch import nn
from triton_process import poisoned_memory

from clustr_mm.models.add_norm import add_norm_triton

DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
HALVES = [torch.float16, torch.bfloat16]
NAMES = (
    't',
    'LN(t)',
    "x's gradient",
    "y's gradient",
    "the weight's gradient",
    "the bias's gradient",
)


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def make_case(batch, tokens, channels, x_dtype=torch.float32, y_dtype=torch.float32, drop=True):
    """Tokens, what is added, its factors and the gradients at both results."""
    generator = torch.Generator().manual_seed(0)
    x, y, of_total, of_normed = (
        torch.randn(batch, tokens, channels, generator=generator).to(DEVICE) for _ in range(4)
    )
    kept = torch.rand(batch, 1, 1, generator=generator) < 0.7
    scale = (kept / 0.7).to(DEVICE, y_dtype) if drop else None
    weight, bias = torch.randn(2, channels, generator=generator).to(DEVICE)
    return (x + 3).to(x_dtype), y.to(y_dtype), scale, weight, bias, of_total, of_normed


def plain(x, y, scale, norm):
    total = x + (y if scale is None else y * scale)
    return total, norm(total)


def with_gradients(function, case, dtype=None):
    tensors = (None if t is None else t.to(dtype or t.dtype) for t in case)
    x, y, scale, weight, bias, of_total, of_normed = tensors
    norm = nn.LayerNorm(x.shape[-1], eps=1e-6, device=x.device, dtype=weight.dtype)
    norm.weight.data, norm.bias.data = weight, bias
    x, y = (t.detach().requires_grad_() for t in (x, y))
    total, normed = function(x, y, scale, norm)[:2]
    torch.autograd.backward((total, normed), (of_total.to(total.dtype), of_normed.to(normed.dtype)))
    return [total.detach(), normed.detach(), x.grad, y.grad, norm.weight.grad, norm.bias.grad]


@pytest.mark.parametrize('drop', [False, True])
@pytest.mark.parametrize(
    ('batch', 'tokens', 'channels'),
    [(2, 35, 20), (1, 1, 64), (3, 7, 1), (2, 300, 64), (1, 40, 320), (5, 3, 512), (1, 2, 1000)],
)
def test_it_is_the_formula(batch, tokens, channels, drop):
    case = make_case(batch, tokens, channels, drop=drop)
    found, exact = with_gradients(add_norm_triton, case), with_gradients(plain, case, torch.double)
    for name, a, b in zip(NAMES, found, exact, strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape, name
        assert (a - b).abs().max() <= 4e-6 * max(1, b.abs().max()), name


@pytest.mark.parametrize('y_dtype', HALVES)
@pytest.mark.parametrize('wide', [False, True])
def test_half_precision_errs_at_most_twice_what_plain_pytorch_does(y_dtype, wide):
    case = make_case(3, 50, 40, torch.float32 if wide else y_dtype, y_dtype)
    exact = with_gradients(plain, case, torch.double)
    with torch.autocast(DEVICE, y_dtype, enabled=wide):
        found, eager = with_gradients(add_norm_triton, case), with_gradients(eager_of(wide), case)
    assert [t.dtype for t in found[:4]] == [case[0].dtype, y_dtype, case[0].dtype, y_dtype]
    for name, a, b, c in zip(NAMES, found, eager, exact, strict=True):
        error, allowed = (torch.linalg.vector_norm(t.double() - c) for t in (a, b))
        assert error <= 2 * allowed + 1e-6 * torch.linalg.vector_norm(c), name


def eager_of(wide):
    """Plain PyTorch; its norm under autocast is float32, and the next layer rounds it."""

    def eager(x, y, scale, norm):
        total, normed = plain(x, y, scale, norm if wide else norm.to(x.dtype))
        return total, normed.to(y.dtype)

    return eager


def test_repeats_are_equal_and_strides_do_not_matter():
    case = make_case(2, 90, 24)
    first = with_gradients(add_norm_triton, case)
    for _ in range(2 if DEVICE == 'cpu' else 30):
        again = with_gradients(add_norm_triton, case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in case[:2]]
    again = with_gradients(add_norm_triton, (*strided, *case[2:]))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_equal_channels_are_finite():
    x, y, *rest = make_case(1, 4, 16)
    for t in with_gradients(add_norm_triton, (torch.full_like(x, 1e4), torch.zeros_like(y), *rest)):
        assert t.isfinite().all()


@pytest.mark.parametrize('drop', [False, True])
def test_operators_keep_their_contract(drop):
    x, y, scale, weight, bias, *grads = make_case(2, 5, 8, drop=drop)
    operators, half = torch.ops.clustr_mm, torch.float16
    rest = scale, weight, bias, 1e-6
    torch.library.opcheck(operators.add_norm.default, (x, y, *rest, half, True))
    trained = [t.clone().requires_grad_() for t in (x, y)]
    torch.library.opcheck(operators.add_norm.default, (*trained, *rest, torch.float32, False))
    for of_total in (grads[0], None):
        torch.library.opcheck(
            operators.add_norm_backward.default,
            (of_total, grads[1], x, scale, weight, 1e-6, torch.float32, half),
        )


@pytest.mark.parametrize('y_dtype', HALVES)
def test_the_norm_is_to_be_had_unrounded(y_dtype):
    x, y, scale, weight, bias, of_total, of_normed = make_case(2, 40, 24, y_dtype=y_dtype)
    norm = nn.LayerNorm(24, eps=1e-6, device=DEVICE)
    norm.weight.data, norm.bias.data = weight, bias
    with torch.autocast(DEVICE, y_dtype):
        total, normed, unrounded = add_norm_triton(x, y, scale, norm, unrounded=True)
        alone = add_norm_triton(x, y, scale, norm, rounded=False)
    # Nothing is written twice where nothing is rounded.
    _, once, again = add_norm_triton(x, y, scale, norm, unrounded=True)
    assert once is again
    assert torch.equal(total, alone[0]) and torch.equal(unrounded, alone[1])
    assert unrounded.dtype == torch.float32 and not unrounded.requires_grad
    assert normed.dtype == y_dtype
    # Triton's interpreter does not round to bfloat16, it cuts bits off.
    tolerance = torch.finfo(y_dtype).eps * (1 if y_dtype == torch.bfloat16 else 0.5)
    torch.testing.assert_close(normed.float(), unrounded, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize('missing', [0, 1])
def test_a_result_that_nobody_uses_has_no_gradient(missing):
    case = list(make_case(2, 30, 20))
    x, y, scale, weight, bias, *grads = case
    case[5 + missing] = torch.zeros_like(x)
    expected = with_gradients(add_norm_triton, case)
    norm = nn.LayerNorm(20, eps=1e-6, device=DEVICE)
    norm.weight.data, norm.bias.data = weight, bias
    x, y = x.requires_grad_(), y.requires_grad_()
    add_norm_triton(x, y, scale, norm)[1 - missing].backward(grads[1 - missing])
    found = (x.grad, y.grad, norm.weight.grad, norm.bias.grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected[2:], strict=True))


def test_it_compiles_without_a_break():
    compiled = torch.compile(add_norm_triton, backend='aot_eager', fullgraph=True, dynamic=True)
    for tokens in (20, 24):
        case = make_case(2, tokens, 8)
        pairs = (with_gradients(function, case) for function in (add_norm_triton, compiled))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('y_dtype', [torch.float32, *HALVES])
@pytest.mark.parametrize('shape', [(64, 3136, 64), (2, 66800, 64), (64, 196, 320)])
def test_real_sizes_on_a_gpu(shape, y_dtype):
    case = make_case(*shape, torch.float32, y_dtype)
    found, eager = with_gradients(add_norm_triton, case), with_gradients(plain, case)
    tolerance = 4 * max(torch.finfo(y_dtype).eps, 1e-6)
    for name, a, b in zip(NAMES, found, eager, strict=True):
        difference = torch.linalg.vector_norm(a.float() - b.float())
        assert difference <= tolerance * torch.linalg.vector_norm(b.float()), name
