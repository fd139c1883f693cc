"""Checks of the MLP's kernels; ``test_conv_gelu.py`` runs them in a process of their own.

On a CPU they need TRITON_INTERPRET=1 before triton is imported, which nothing else should see:

    TRITON_INTERPRET=1 pytest tests/ops/conv_gelu_checks.py
"""

import os

import pytest
import torch
import torch.nn.functional as F
from triton_process import poisoned_memory

from clustr_mm.ops.conv_gelu import conv_gelu
from clustr_mm.ops.conv_gelu.triton import conv_gelu_triton

DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = ('GELU(v)', "u's gradient", "the weight's gradient", "the bias's gradient")


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def make_case(batch, height, width, channels, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, height * width, channels, generator=generator)
    weight = torch.randn(channels, 1, 3, 3, generator=generator) / 3
    bias = torch.randn(channels, generator=generator)
    grad = torch.randn(u.shape, generator=generator)
    u, grad = u.to(DEVICE, dtype), grad.to(DEVICE, dtype)
    return u, (height, width), weight.to(DEVICE), bias.to(DEVICE), grad


def plain(u, hw, weight, bias):
    """The definition."""
    channels = len(bias)

    def dwconv(u):
        return F.conv2d(u, weight.to(u.dtype), bias.to(u.dtype), padding=1, groups=channels)

    return conv_gelu(u, hw, dwconv)


def with_gradients(function, case, dtype=None):
    """The result and the gradients of tokens, weight and bias."""
    u, hw, weight, bias, grad = case
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (u, weight, bias)]
    out = function(leaves[0], hw, *leaves[1:])
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(
    ('batch', 'height', 'width', 'channels'),
    [
        (2, 5, 7, 20),
        (1, 1, 1, 64),
        (1, 1, 9, 3),
        (1, 40, 1, 16),
        (3, 2, 2, 65),
        (1, 20, 17, 64),  # more than one program of the backward pass
        (2, 4, 8, 130),
    ],
)
def test_it_is_the_formula(batch, height, width, channels):
    case = make_case(batch, height, width, channels)
    found, exact = with_gradients(conv_gelu_triton, case), with_gradients(plain, case, torch.double)
    for name, a, b in zip(NAMES, found, exact, strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape, name
        assert (a - b).abs().max() <= 2e-6 * b.abs().max(), name


@pytest.mark.parametrize('dtype', DTYPES[1:])
@pytest.mark.parametrize('factor', [1.0, 30.0])
def test_half_precision_errs_at_most_twice_what_plain_pytorch_does(dtype, factor):
    u, *rest = make_case(2, 9, 11, 40, dtype)
    case = (u * factor, *rest)
    found, exact = with_gradients(conv_gelu_triton, case), with_gradients(plain, case, torch.double)
    eager = with_gradients(plain, case)
    assert found[0].dtype == found[1].dtype == dtype
    assert found[2].dtype == found[3].dtype == torch.float32, 'the parameters stay what they are'
    for name, a, b, c in zip(NAMES, found, eager, exact, strict=True):
        error, allowed = (torch.linalg.vector_norm(t.double() - c) for t in (a, b))
        assert error <= 2 * allowed, name


@pytest.mark.parametrize(
    'dtype',
    [torch.float16, *(pytest.param(d, marks=pytest.mark.long) for d in (DTYPES[0], DTYPES[2]))],
)
def test_repeats_are_equal_and_strides_do_not_matter(dtype):
    case = make_case(2, 10, 9, 24, dtype)
    first = with_gradients(conv_gelu_triton, case)
    for _ in range(2 if DEVICE == 'cpu' else 30):
        again = with_gradients(conv_gelu_triton, case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    u, hw, weight, bias, _ = case
    strided = u.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(first[0], conv_gelu_triton(strided, hw, weight, bias))


def test_large_values_stay_finite():
    u, *rest = make_case(1, 6, 6, 16)
    for t in with_gradients(conv_gelu_triton, (1e4 * u, *rest)):
        assert t.isfinite().all()


def test_operators_keep_their_contract():
    u, hw, weight, bias, grad = make_case(2, 3, 4, 8)
    operators = torch.ops.clustr_mm
    torch.library.opcheck(operators.conv_gelu.default, (u, weight, bias, *hw))
    trained = [t.clone().requires_grad_() for t in (u, weight, bias)]
    torch.library.opcheck(operators.conv_gelu.default, (*trained, *hw))
    torch.library.opcheck(operators.conv_gelu_backward.default, (grad, u, weight, bias, *hw))


def test_it_compiles_without_a_break():
    compiled = torch.compile(conv_gelu_triton, backend='aot_eager', fullgraph=True, dynamic=True)
    for hw in ((5, 7), (4, 6)):
        case = make_case(2, *hw, 8)
        pairs = (with_gradients(function, case) for function in (conv_gelu_triton, compiled))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(64, 56, 56, 512), (2, 200, 334, 512), (1, 7, 7, 2048)])
def test_real_sizes_on_a_gpu(shape, dtype):
    torch.use_deterministic_algorithms(False)  # cuDNN has no such depthwise convolution
    case = make_case(*shape, dtype)
    found, eager = with_gradients(conv_gelu_triton, case), with_gradients(plain, case)
    for name, a, b in zip(NAMES, found, eager, strict=True):
        difference = torch.linalg.vector_norm(a.float() - b.float())
        tolerance = 4 * max(torch.finfo(dtype).eps, 1e-6)
        assert difference <= tolerance * torch.linalg.vector_norm(b.float()), name
