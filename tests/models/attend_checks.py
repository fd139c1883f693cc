"""Checks of the attention's kernels; ``test_attend.py`` runs them in a process of their own.

On a CPU they need TRITON_INTERPRET=1 before triton is imported, which nothing else should see:

    TRITON_INTERPRET=1 pytest tests/models/attend_checks.py
"""

import os

import numpy as np
import pytest
import torch
import triton.language as tl
from triton_process import poisoned_memory

from clustr_mm.models.attend import attend, attend_triton

DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
DTYPES = [torch.float16, torch.bfloat16]
NAMES = ('the sum', "q's gradient", "the coarse scale's gradient", "the fine scale's gradient")


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter has bfloat16 as integers of its bits, and multiplies those."""
    if DEVICE != 'cpu':
        return
    from triton.runtime import interpreter

    product = interpreter.InterpreterBuilder.create_dot

    def values(t):
        if not t.dtype.is_bf16():
            return t
        wide = t.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(wide.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return product(self, values(a), values(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, 'create_dot', create_dot)


def make_case(batch, tokens, counts, heads, channels, dtype=torch.float16, factor=1.0):
    """Queries, keys and values, the number of heads, and the gradient at the result."""
    generator = torch.Generator().manual_seed(tokens)
    q, grad, *kvs = (
        torch.randn(batch, n, c, generator=generator).to(DEVICE, dtype)
        for n, c in ((tokens, channels), (tokens, channels), *((m, 2 * channels) for m in counts))
    )
    return factor * q, kvs, heads, grad


def plain(q, kvs, heads):
    return sum(attend(q, kv, heads) for kv in kvs)


def by_the_formula(q, kvs, heads):
    """From the definition, softmax by softmax."""
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    total = 0
    for kv in kvs:
        k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in kv.chunk(2, dim=-1))
        total = total + (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return total.transpose(1, 2).flatten(2)


def with_gradients(function, case, dtype=None):
    q, kvs, heads, grad = case
    q, *kvs = (t.detach().to(dtype or t.dtype).requires_grad_() for t in (q, *kvs))
    out = function(q, kvs, heads)
    out.backward(grad.to(out.dtype))
    return [out.detach(), q.grad, *(kv.grad for kv in kvs)]


def assert_errs_at_most_twice_what_plain_pytorch_does(case):
    found, exact = (
        with_gradients(attend_triton, case),
        with_gradients(by_the_formula, case, torch.double),
    )
    eager = with_gradients(plain, case)
    for name, a, b, c in zip(NAMES, found, eager, exact, strict=False):
        assert a.dtype == b.dtype and a.shape == c.shape, name
        error, allowed = (torch.linalg.vector_norm(t.double() - c) for t in (a, b))
        if DEVICE == 'cpu' and a.dtype == torch.bfloat16:
            allowed = 2 * allowed  # the interpreter cuts bits off
        assert error <= 2 * allowed + 1e-6, f'{name}: {error:.1e}, {allowed:.1e}'


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'shape',
    [
        dict(),
        dict(batch=1, tokens=1, counts=(1, 1)),
        dict(counts=(49,)),
        dict(tokens=65, counts=(16, 64)),
        dict(tokens=130, counts=(17, 65), heads=3, channels=48),
        dict(tokens=70, counts=(3, 12), heads=5, channels=35),
        dict(tokens=20, counts=(256, 255), heads=1, channels=64),
        dict(counts=(64, 16), channels=100, heads=2),
    ],
)
def test_half_precision_errs_at_most_twice_what_plain_pytorch_does(shape, dtype):
    options = dict(batch=2, tokens=50, counts=(12, 48), heads=2, channels=64)
    assert_errs_at_most_twice_what_plain_pytorch_does(
        make_case(**{**options, **shape}, dtype=dtype)
    )


@pytest.mark.parametrize('dtype', DTYPES)
def test_sharp_attention_stays_precise(dtype):
    case = make_case(1, 40, (10, 40), 1, 32, dtype, factor=20.0)
    assert_errs_at_most_twice_what_plain_pytorch_does(case)


def test_large_values_stay_finite():
    for t in with_gradients(attend_triton, make_case(1, 40, (10, 40), 1, 32, factor=1e4)):
        assert t.isfinite().all()


def test_no_token_sees_another_images_or_heads():
    q, kvs, heads, _ = make_case(3, 30, (5, 20), 2, 32)
    together = attend_triton(q, kvs, heads)
    for b in range(3):
        alone = attend_triton(q[b : b + 1], [kv[b : b + 1] for kv in kvs], heads)
        assert torch.equal(together[b : b + 1], alone)
    first = [kv.unflatten(-1, (4, 16))[:, :, [0, 2]].flatten(2) for kv in kvs]
    assert torch.equal(together[..., :16], attend_triton(q[..., :16], first, 1))


def test_repeats_are_equal_and_strides_do_not_matter():
    case = make_case(2, 70 if DEVICE == 'cpu' else 3136, (12, 48), 2, 64)
    first = with_gradients(attend_triton, case)
    for _ in range(1 if DEVICE == 'cpu' else 30):
        again = with_gradients(attend_triton, case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    q, kvs, *rest = ([u.mT.contiguous().mT for u in t] if isinstance(t, list) else t for t in case)
    again = with_gradients(attend_triton, (q.mT.contiguous().mT, kvs, *rest))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize('counts', [(4,), (4, 9)])
def test_operators_keep_their_contract(counts):
    q, (kv, *others), heads, grad = make_case(2, 10, counts, 2, 32)
    other = others[0] if others else None
    operators = torch.ops.clustr_mm
    torch.library.opcheck(operators.attend.default, (q, kv, other, heads))
    trained = [None if t is None else t.clone().requires_grad_() for t in (q, kv, other)]
    torch.library.opcheck(operators.attend.default, (*trained, heads))
    torch.library.opcheck(operators.attend_backward.default, (grad, q, kv, other, heads))


def test_it_compiles_without_a_break():
    compiled = torch.compile(attend_triton, backend='aot_eager', fullgraph=True, dynamic=True)
    for tokens in (20, 24):
        case = make_case(2, tokens, (5, 18), 2, 32)
        pairs = (with_gradients(function, case) for function in (attend_triton, compiled))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(64, 3136, 1), (64, 784, 2), (64, 196, 4), (1, 196, 5)])
def test_real_sizes_on_a_gpu(shape, dtype):
    torch.use_deterministic_algorithms(False)  # flash attention's backward pass is not
    batch, tokens, heads = shape
    case = make_case(batch, tokens, (49, 196), heads, 64 * heads, dtype)
    found, eager = with_gradients(attend_triton, case), with_gradients(plain, case)
    for name, a, b in zip(NAMES, found, eager, strict=True):
        difference = torch.linalg.vector_norm(a.float() - b.float())
        tolerance = 4 * torch.finfo(dtype).eps
        assert difference <= tolerance * torch.linalg.vector_norm(b.float()), name
