"""Checks of the Triton kernels; ``test_triton.py`` runs them in a process of their own.

On a CPU they need TRITON_INTERPRET=1 before triton is imported, which nothing else should see:

    TRITON_INTERPRET=1 pytest tests/ops/triton_checks.py
"""

import copy
import os
from contextlib import contextmanager, nullcontext

import pytest
import torch
from helpers import assert_invariants, some_counts
from triton_process import poisoned_memory

from clustr_mm.models import ClusTR
from clustr_mm.ops import dpc_knn, merge_tokens
from clustr_mm.ops.clustering import triton as backend
from clustr_mm.ops.clustering.reference import dpc_knn_reference, log_density, pairwise_distance2
from clustr_mm.ops.conv_gelu import triton as conv_gelu_triton
from clustr_mm.ops.merging import triton as merging
from clustr_mm.ops.merging.merge import MERGE, MERGE_BACKWARD, merge_plain

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # deterministic matrix products
DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
PRECISIONS = ['fp16x3', 'fp16']
gpu_only = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def tokens(batch: int, n: int, channels: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(batch, n, channels, generator=generator) + 3
    )  # a common offset, as features have
    return x.to(DEVICE, dtype)


def operands(x, precision):
    """The tokens as the kernels see them: moved and rounded, in float64 and in x's units."""
    prepared = backend.prepare(x.contiguous(), precision)
    keys = prepared.keys[:, : x.shape[1]].double()
    if precision == 'fp16x3':
        first, remainder = keys.chunk(2, dim=-1)
        keys = first + remainder
    return keys[..., : x.shape[2]] * prepared.unit[:, None, None].double()


def assert_equal_to_reference(x, k, precision):
    counts = some_counts(x.shape[1])
    expected = dpc_knn_reference(operands(x, precision), counts, k)
    found = backend.dpc_knn_triton(x, counts, k, precision)
    for count, a, b in zip(counts, expected, found, strict=True):
        assert torch.equal(a, b), f'M = {count}'


# --- K0: what the kernels calculate with


@pytest.mark.parametrize('factor', [1.0, 1e-12, 1e12])
@pytest.mark.parametrize('precision', PRECISIONS)
def test_tokens_are_moved_rounded_and_padded(precision, factor):
    x = tokens(2, 70, 20) * factor
    prepared = backend.prepare(x, precision)
    seen = operands(x, precision)
    for b in range(2):
        zero = (seen[b] == 0).all(-1).nonzero().flatten()
        assert len(zero) == 1, 'the origin is a token'
        moved = (x[b] - x[b, zero]).double()
        mean = x[b].double().mean(0)
        offset = (x[b].double() - mean).square().sum(-1)
        assert offset[zero] < offset.median(), 'near the mean'
        bits = {'fp16x3': 22, 'fp16': 11}[precision]
        error = (seen[b] - moved).abs()
        assert (error <= 2.0**-bits * moved.abs() + 2.0**-38 * moved.abs().max()).all()
    keys, norm2 = prepared.keys.double(), prepared.norm2
    assert keys.shape[1] % 64 == 0 and keys.shape[2] % 16 == 0
    assert (keys[:, 70:] == 0).all() and (norm2[:, 70:] == torch.inf).all()
    squares = (operands(x, precision) / prepared.unit[:, None, None].double()).square().sum(-1)
    torch.testing.assert_close(norm2[:, :70].double(), squares, rtol=1e-6, atol=0)


def test_float16_never_overflows():
    x = torch.zeros(1, 40, 16, device=DEVICE)
    x[:, 1::2] = 3e38
    x[:, 2::2] = -3e38
    assert backend.prepare(x / 2, 'fp16').keys.isfinite().all()


# --- the labels


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize(
    ('batch', 'n', 'channels'),
    [
        (2, 1, 8),
        (2, 2, 7),
        (1, 3, 1),
        (2, 5, 16),
        (2, 64, 64),
        (3, 65, 7),
        (1, 150, 100),
        (1, 70, 320),
    ],
)
def test_labels_are_the_references(batch, n, channels, precision):
    assert_equal_to_reference(tokens(batch, n, channels, seed=n), min(5, n), precision)


@pytest.mark.parametrize('channels', [64, 128, 256])
def test_labels_are_the_references_for_the_models_channels(channels):
    assert_equal_to_reference(tokens(1, 100, channels), 5, 'fp16x3')


@pytest.mark.parametrize('factor', [1e-12, -1e12])
@pytest.mark.parametrize('precision', ['fp16x3', 'fp16'])
def test_labels_are_the_references_whatever_the_unit(precision, factor):
    assert_equal_to_reference(tokens(2, 70, 16) * factor, 5, precision)


@pytest.mark.parametrize('k', [1, 3, 4, 6, 9, 17, 33])
def test_labels_are_the_references_for_every_k(k):
    assert_equal_to_reference(tokens(1, 80, 16, seed=k), k, 'fp16x3')


@pytest.mark.parametrize('precision', PRECISIONS)
def test_large_maps_have_tiles_of_more_rows(precision, monkeypatch):
    monkeypatch.setattr(backend, '_MANY_ROWS_FROM', 100)
    monkeypatch.setattr(backend, '_MANY_ROWS_FROM_BATCH', 100)
    x = tokens(2, 200, 16)
    assert backend.choose_tile(backend.prepare(x, precision), values=5).rows == 128
    assert_equal_to_reference(x, 5, precision)


def test_of_two_neighbours_the_invariants_hold():
    # With k = 2 each other's nearest neighbours have one density, and rounding decides who is
    # denser; where nothing is rounded, test_equal_distances_resolve_alike has it.
    x = tokens(1, 80, 16, seed=2)
    for m in (1, 20, 79):
        labels, order = backend.dpc_knn_triton(x, [m, 80], 2)
        assert_invariants(operands(x, 'fp16x3'), labels, order, m, 1e-5)


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('k', [2, 5])
@pytest.mark.parametrize('n', [50, 150])
def test_equal_distances_resolve_alike(n, k, precision):
    # Distinct points of a grid far from the origin: most distances are tied, none by rounding.
    side = int(n**0.5) + 1
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)) + 1000.0
    x = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(n))[:n]]
    x = x[None].to(DEVICE)
    expected = dpc_knn_reference(x.double(), some_counts(n), k)
    found = backend.dpc_knn_triton(x, some_counts(n), k, precision)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_constant_tokens():
    x = tokens(2, 1, 16).expand(-1, 90, -1)
    labels, order = backend.dpc_knn_triton(x, [20, 90], 5)
    assert torch.equal(order, torch.arange(90, device=DEVICE).expand(2, -1)), 'lower index first'
    assert_invariants(x, labels, order, 20, 1e-5)
    assert (labels[:, 20:] == 0).all(), 'equal distances: lowest rank'


@pytest.mark.parametrize('precision', PRECISIONS)
def test_duplicated_tokens_keep_the_invariants(precision):
    index = torch.randint(0, 25, (70,), generator=torch.Generator().manual_seed(1))
    x = tokens(2, 25, 16)[:, index]
    for m in (1, 30, 69):
        labels, order = backend.dpc_knn_triton(x, [m, 70], 5, precision)
        assert_invariants(operands(x, precision), labels, order, m, 1e-5)


def test_images_of_a_batch_do_not_meet():
    x = tokens(3, 100, 16) * torch.tensor([1.0, 1e-3, 50.0], device=DEVICE)[:, None, None]
    together = backend.dpc_knn_triton(x, [7, 30], 5)
    alone = [backend.dpc_knn_triton(image[None], [7, 30], 5) for image in x]
    for scale, labels in enumerate(together):
        assert torch.equal(labels, torch.cat([a[scale] for a in alone]))


def test_counts_in_any_order_and_repeated():
    x = tokens(1, 64, 8)
    a, b, c, d = backend.dpc_knn_triton(x, (16, 64, 4, 16), 5)
    assert torch.equal(a, d)
    for found, count in ((a, 16), (b, 64), (c, 4)):
        assert torch.equal(found, backend.dpc_knn_triton(x, [count], 5)[0])
        assert found.shape == (1, 64) and found.dtype == torch.int64


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_as_it_is(dtype):
    x = tokens(1, 65, 16).to(dtype)
    for precision in PRECISIONS:
        half = backend.dpc_knn_triton(x, [9, 30], 5, precision)
        single = backend.dpc_knn_triton(x.float(), [9, 30], 5, precision)
        assert all(torch.equal(a, b) for a, b in zip(half, single, strict=True))


def test_tokens_need_not_be_contiguous():
    x = tokens(2, 20, 60)
    strided = backend.dpc_knn_triton(x.transpose(1, 2), [7], 5)[0]
    assert torch.equal(strided, backend.dpc_knn_triton(x.transpose(1, 2).contiguous(), [7], 5)[0])


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_labels_stay_in_range_whatever_the_values(value):
    x = tokens(2, 90, 16)
    x[0, 5, 3] = value
    x[1] = value
    for count, labels in zip((9, 30, 90), backend.dpc_knn_triton(x, [9, 30, 90], 5), strict=True):
        assert labels.min() >= 0 and labels.max() < count


@pytest.mark.parametrize('n', [65, pytest.param(196, marks=pytest.mark.long), 3136])
def test_repeats_are_equal(n):
    if DEVICE == 'cpu':
        n = min(n, 300)
    for seed in range(5 if n < 300 else 1):
        x = tokens(2, n, 16, seed=seed)
        first = backend.dpc_knn_triton(x, [9, 30], 5)
        for _ in range(1 if DEVICE == 'cpu' else 30):
            again = backend.dpc_knn_triton(x, [9, 30], 5)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def eager_log_density(x: torch.Tensor, dtype: torch.dtype, k: int) -> torch.Tensor:
    """Log-density with the distances' product in a low precision, as plain PyTorch computes it."""
    x = (x - x.mean(1, keepdim=True)).to(dtype)
    products = (x @ x.transpose(1, 2)).float()
    norm2 = x.float().square().sum(-1)
    d2 = (norm2[:, :, None] + norm2[:, None] - 2 * products).clamp_(min=0) / x.shape[2]
    d2.diagonal(dim1=1, dim2=2).zero_()
    return log_density(d2.topk(k, dim=-1, largest=False).values)


@pytest.mark.parametrize(
    ('precision', 'dtype'), [('fp16', torch.float16), ('fp16x3', torch.float32)]
)
def test_density_is_as_precise_as_eagers(precision, dtype):
    x = tokens(1, 150 if DEVICE == 'cpu' else 5000, 64)
    nearest = pairwise_distance2(x.double()).topk(5, dim=-1, largest=False).values
    exact = log_density(nearest)
    found = backend.density(backend.prepare(x, precision), 5)[:, : x.shape[1]]
    error = (found - exact).abs().max()
    assert error <= 2 * (eager_log_density(x, dtype, 5) - exact).abs().max() + 1e-6


def test_default_precision_agrees_with_float32():
    same = [
        backend.dpc_knn_triton(x, [12, 48], 5)[1] == dpc_knn_reference(x.double(), [48], 5)[0]
        for x in (tokens(1, 200, 64, seed=seed) for seed in range(4))
    ]
    assert torch.cat(same).double().mean() > 0.995


def test_half_precision_is_multiplied_where_it_is_asked_for():
    x = tokens(1, 250, 1)
    of_22_bits, of_11 = (backend.dpc_knn_triton(x, [62], 5, p)[0] for p in ('fp16x3', 'fp16'))
    assert not torch.equal(of_22_bits, of_11), 'or this would show nothing'
    assert torch.equal(dpc_knn(x, 62, backend='triton'), of_22_bits)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(dpc_knn(x, 62, backend='triton'), of_11)
    half = x.half()
    expected = backend.dpc_knn_triton(half, [62], 5, 'fp16')[0]
    assert torch.equal(dpc_knn(half, 62, backend='triton'), expected)


# --- the merge


def merge_case(batch=2, n=150, channels=20, m=40, dtype=torch.float32, shift=0.0, empty=0):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, channels, generator=generator)
    logits = 2 * torch.randn(batch, n, generator=generator) + shift
    labels = torch.randint(0, m - empty, (batch, n), generator=generator)
    labels[:, : n // 4] = 0  # one large cluster
    return x.to(DEVICE, dtype), labels.to(DEVICE), m, logits.to(DEVICE, dtype)


def merge_triton(x, labels, m, logits):
    """The merge by the kernels, with its gradient, on any device."""

    class Merge(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, logits):
            ctx.saved = x, labels, logits, *merging.merge_triton(x, labels, m, logits)
            return ctx.saved[3]

        @staticmethod
        def backward(ctx, grad):
            return merging.merge_backward_triton(grad, *ctx.saved)

    return Merge.apply(x, logits).to(x.dtype)


def by_the_formula(x, labels, m, logits):
    """The merge and its gradients in float64, from the formula of merge.py."""
    x, logits = x.double().requires_grad_(), logits.double().requires_grad_()
    member = torch.nn.functional.one_hot(labels, m).to(x.dtype).transpose(1, 2)  # (B, M, N)
    w = logits.exp()[..., None]
    return x, logits, (member @ (w * x)) / (member @ w + 1e-6)


def assert_close(found, expected, tolerance):
    """Compares, relative to the largest value."""
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f'{error:.2e}'


@pytest.mark.parametrize(
    'shape',
    [
        dict(),
        dict(channels=7),
        dict(channels=100),
        dict(channels=320, n=70),
        dict(batch=3, n=65, m=3),
        dict(n=1, m=1),
        dict(n=64, m=64),
        dict(m=150, empty=30),
        dict(n=33, m=17, channels=1),
    ],
)
def test_merge_and_its_gradients_are_the_formulas(shape):
    x, labels, m, logits = merge_case(**shape)
    wide_x, wide_logits, expected = by_the_formula(x, labels, m, logits)
    x.requires_grad_()
    logits.requires_grad_()
    merged = merge_triton(x, labels, m, logits)
    assert merged.dtype == torch.float32 and merged.shape == expected.shape
    assert_close(merged, expected.detach(), 1e-6)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    merged.backward(direction)
    expected.backward(direction.double())
    assert_close(x.grad, wide_x.grad, 1e-6)
    # A difference, x - c: its error is relative to x's and not to its own size.
    scale = max(1.0, wide_logits.grad.abs().max())
    assert (logits.grad - wide_logits.grad).abs().max() <= 2e-6 * scale


def test_merge_is_merge_tokens_and_leaves_out_what_is_in_no_cluster():
    x, labels, m, logits = merge_case()
    labels[0, ::7] = m
    labels[1, 3::9] = -1
    labels[1, 5] = 10**12
    case = [t.cpu().requires_grad_() if t.is_floating_point() else t.cpu() for t in (x, logits)]
    expected = merge_tokens(case[0], labels.cpu(), m, case[1])
    x.requires_grad_()
    logits.requires_grad_()
    merged = merge_triton(x, labels, m, logits)
    torch.testing.assert_close(merged.cpu(), expected, rtol=1e-6, atol=1e-6)
    merged.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad.cpu(), case[0].grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.cpu(), case[1].grad, rtol=1e-5, atol=1e-5)
    assert (x.grad[0, ::7] == 0).all() and (logits.grad[1, 5] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_merge_of_half_precision_errs_by_its_rounding_alone(dtype):
    x, labels, m, logits = merge_case(dtype=dtype)
    wide_x, wide_logits, expected = by_the_formula(x, labels, m, logits)
    x.requires_grad_()
    logits.requires_grad_()
    merged = merge_triton(x, labels, m, logits)
    assert merged.dtype == dtype
    half_an_ulp = torch.finfo(dtype).eps / 2
    assert_close(merged, expected.detach(), half_an_ulp + 1e-6)
    merged.sum().backward()
    expected.sum().backward()
    if DEVICE == 'cpu' and dtype == torch.bfloat16:
        half_an_ulp *= 2  # the interpreter cuts bits off
    assert x.grad.dtype == logits.grad.dtype == dtype
    assert_close(x.grad, wide_x.grad, half_an_ulp + 1e-6)
    assert_close(logits.grad, wide_logits.grad, half_an_ulp + 1e-6)


@pytest.mark.parametrize('shift', [80, 1000, -20, -1000])
def test_merge_of_extreme_weights_stays_finite(shift):
    x, labels, m, logits = merge_case(shift=float(shift), empty=5)
    x.requires_grad_()
    logits.requires_grad_()
    merged = merge_triton(x, labels, m, logits)
    merged.square().sum().backward()
    assert merged.isfinite().all() and x.grad.isfinite().all() and logits.grad.isfinite().all()
    assert (merged[:, -5:] == 0).all(), 'an empty cluster is zero'
    plain = merge_tokens(x.detach().cpu(), labels.cpu(), m, logits.detach().cpu())
    torch.testing.assert_close(merged.detach().cpu(), plain, rtol=1e-5, atol=1e-6)


def test_merge_is_deterministic_and_takes_strided_tensors():
    x, labels, m, logits = merge_case(n=130, m=20)
    first = merge_triton(x, labels, m, logits)
    for _ in range(3 if DEVICE == 'cpu' else 30):
        assert torch.equal(first, merge_triton(x, labels, m, logits))
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.stack([logits, logits], -1)[..., 0]
    assert torch.equal(first, merge_triton(strided, labels, m, wide))


# --- the operators of torch.library


@contextmanager
def taken_for_a_gpu(monkeypatch):
    """What runs on a GPU takes its kernels, which the interpreter runs."""
    with monkeypatch.context() as patches:
        if DEVICE == 'cpu':
            patches.setattr(torch.Tensor, 'is_cuda', True, raising=False)
            for module in (backend, merging, conv_gelu_triton):
                patches.setattr(module, 'on_device_of', lambda x: nullcontext())
        yield


def test_operators_keep_their_contract():
    x, labels, m, logits = merge_case(n=20, m=6, channels=8)
    operators = torch.ops.clustr_mm
    backend_name = 'triton'
    for arguments in ((x, [3, 20], 5, backend_name, True), (x, [3, 20], 5, None, False)):
        torch.library.opcheck(operators.dpc_knn.default, arguments)
    torch.library.opcheck(operators.merge.default, (x, labels, m, logits))
    trained = [t.clone().requires_grad_() for t in (x, logits)]
    torch.library.opcheck(operators.merge.default, (trained[0], labels, m, trained[1]))
    merged, *kept = operators.merge(x, labels, m, logits)
    arguments = (torch.ones_like(merged), x, labels, logits, merged, *kept)
    torch.library.opcheck(operators.merge_backward.default, arguments)


def test_the_operators_take_the_kernels_on_a_gpu(monkeypatch):
    x, labels, m, logits = merge_case(n=90, m=12)
    with taken_for_a_gpu(monkeypatch):
        found = dpc_knn(x, [5, 20])
        merged, *kept = MERGE(x, labels, m, logits)
        grads = MERGE_BACKWARD(merged, x, labels, logits, merged, *kept)
    expected = backend.dpc_knn_triton(x, [5, 20], 5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    by_kernels = merging.merge_triton(x, labels, m, logits)
    assert torch.equal(merged, by_kernels[0])
    again = merging.merge_backward_triton(merged, x, labels, logits, *by_kernels)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert not torch.equal(merged, merge_plain(x, labels, m, logits)[0]), 'or this shows nothing'


# --- what only a GPU can show


@gpu_only
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('batch', 'n', 'channels'), [(1, 1, 64), (3, 777, 63), (64, 196, 256)])
def test_a_gpu_takes_the_kernels_by_default(batch, n, channels, dtype):
    x = tokens(batch, n, channels, dtype=dtype)
    m = max(1, n // 4)
    labels = dpc_knn(x, m)
    assert torch.equal(labels, dpc_knn(x, m, backend='triton'))
    logits = x[..., 0].contiguous()
    merged = merge_tokens(x, labels, m, logits)
    assert torch.equal(merged, merge_triton(x, labels, m, logits))
    assert dpc_knn(x.double(), m).shape == (batch, n), 'what the kernels do not take still runs'


NARROW = dict(
    embed_dims=(16, 32, 64, 64),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 4),
    mlp_ratios=(4, 4, 2, 2),
    reductions=(8, 4, 2, 1),
)


@pytest.mark.parametrize(
    'dtype', [torch.float32, pytest.param(torch.float16, marks=pytest.mark.long)]
)
def test_the_backbone_and_its_gradients_are_plain_pytorchs(dtype, monkeypatch):
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    net = ClusTR(arch=NARROW, drop_path_rate=0.0)
    images = torch.randn(2, 3, 96, 64)

    def run(where, device, dtype):
        wide = torch.promote_types(dtype, torch.float32)
        model = copy.deepcopy(net).to(device, wide)
        with where, torch.autocast(device, dtype, enabled=dtype == torch.float16):
            maps = model(images.to(device, wide))
            generator = torch.Generator().manual_seed(1)
            directions = [torch.randn(m.shape, generator=generator).to(m) for m in maps]
            torch.autograd.backward(maps, directions)
        results = [m.detach() for m in maps], [p.grad for p in model.parameters()]
        return [[t.cpu().double() for t in kind] for kind in results]

    found = run(taken_for_a_gpu(monkeypatch), DEVICE, dtype)
    plain, exact = (run(nullcontext(), 'cpu', each) for each in (dtype, torch.float64))
    assert not torch.equal(found[0][0], plain[0][0]), 'or no kernel ran'
    for of_kernels, of_pytorch, true in zip(found, plain, exact, strict=True):
        rounding = 1e-6 * max(torch.linalg.vector_norm(t) for t in true)
        for a, b, c in zip(of_kernels, of_pytorch, true, strict=True):
            error, allowed = (torch.linalg.vector_norm(t - c) for t in (a, b))
            assert error <= 2 * allowed + rounding


@gpu_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_backbone_is_as_precise_as_with_plain_pytorch(dtype):
    torch.use_deterministic_algorithms(False)  # some of cuDNN's convolutions are not
    torch.manual_seed(0)
    kernels = ClusTR(arch='tiny').to(DEVICE).eval()
    plain = ClusTR(arch='tiny', backend='tiled').to(DEVICE).eval()
    plain.load_state_dict(kernels.state_dict())
    images = torch.randn(4, 3, 224, 224, device=DEVICE)
    with torch.no_grad():
        exact = plain(images)
        with torch.autocast(DEVICE, dtype=dtype):
            found, eager = kernels(images), plain(images)
    for reference, a, b in zip(exact, found, eager, strict=True):
        error, allowed = (torch.linalg.vector_norm(maps - reference) for maps in (a, b))
        assert error <= 2 * allowed


@gpu_only
@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize(('n', 'channels'), [(3136, 64), (4175, 320), (16700, 64)])
def test_large_maps_keep_the_invariants(n, channels, precision):
    x = tokens(1, n, channels)
    seen = operands(x, precision)
    m = n // 16
    labels, order = (t[0] for t in backend.dpc_knn_triton(x, [m, n], 5, precision))
    centres = order.argsort()[:m]
    d2 = torch.cdist(seen[0], seen[0, centres]).square() / channels
    own = d2.gather(1, labels[:, None]).squeeze(1)
    assert (own - d2.amin(1) <= 1e-4 * d2.amin(1) + 1e-6).all()
    if n <= 4175:
        expected = dpc_knn_reference(seen, [m], 5)[0][0]
        their_centres = set(dpc_knn_reference(seen, [n], 5)[0][0].argsort()[:m].tolist())
        assert len(their_centres & set(centres.tolist())) >= 0.995 * m
        assert expected.max() == labels.max()


def cluster_and_merge(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    m = x.shape[1] // 4
    labels = dpc_knn(x, m)
    return merge_tokens(x, labels, m, logits)


@gpu_only
def test_the_host_never_waits_and_a_graph_captures_all():
    torch.use_deterministic_algorithms(False)
    x = tokens(2, 3136, 64)
    logits = x[..., 0].contiguous()
    expected = cluster_and_merge(x, logits)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        cluster_and_merge(x, logits)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = cluster_and_merge(x, logits)
    graph.replay()
    assert torch.equal(captured, expected)


@gpu_only
def test_a_detection_image_needs_under_50_mb():
    torch.use_deterministic_algorithms(False)
    x = tokens(1, 66800, 64)
    backend.dpc_knn_triton(x, [1043, 4175], 5)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backend.dpc_knn_triton(x, [1043, 4175], 5)
    assert torch.cuda.max_memory_allocated() - before < 50e6
