"""Checks of the Triton kernels; ``test_triton.py`` runs them in a process of their own.

On a CPU they need TRITON_INTERPRET=1 before triton is imported, which nothing else should see:

    TRITON_INTERPRET=1 pytest tests/clustering/triton_checks.py
"""

import copy
import os
from contextlib import contextmanager, nullcontext

import pytest
import torch
from helpers import assert_invariants, some_counts
from triton_process import poisoned_memory

from clustr_mm import ClusTR
from clustr_mm.models import add_norm, attend
from clustr_mm.ops import merge_scales, merge_tokens
from clustr_mm.ops.clustering import dpc_knn, whole_image_kernel
from clustr_mm.ops.clustering import triton as backend
from clustr_mm.ops.clustering.reference import dpc_knn_reference, log_density, pairwise_distance2
from clustr_mm.ops.conv_gelu import conv_gelu
from clustr_mm.ops.merging import triton as merge_triton_module
from clustr_mm.ops.merging.triton import merge_scales_triton, merge_triton

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # deterministic matrix products
DEVICE = 'cpu' if os.environ.get('TRITON_INTERPRET') == '1' else 'cuda'
PRECISIONS = ['fp16x3', 'fp16', 'tf32', 'ieee']
gpu_only = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')


def operands(x, precision):
    """The tokens as the kernels see them: moved and rounded, in float64 and in x's units."""
    prepared = backend.prepare(x.contiguous(), precision)
    keys = prepared.keys[:, : x.shape[1]].double()
    if precision == 'fp16x3':
        first, remainder = keys.chunk(2, dim=-1)
        keys = first + remainder
    return keys[..., : x.shape[2]] * prepared.unit[:, None, None].double()


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


@pytest.fixture(params=['one program an image', 'kernel after kernel'])
def launches(request, monkeypatch):
    """Small images both ways: by ``whole_image_kernel``, and as large ones are."""
    if request.param == 'kernel after kernel':
        monkeypatch.setattr(backend, 'WHOLE_IMAGE', 0)


both_launches = pytest.mark.usefixtures('launches')


def tokens(batch: int, n: int, channels: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(batch, n, channels, generator=generator) + 3
    )  # a common offset, as features have
    return x.to(DEVICE, dtype)


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
        bits = {'fp16x3': 22, 'fp16': 11, 'tf32': 11, 'ieee': 24}[precision]
        error = (seen[b] - moved).abs()
        assert (error <= 2.0**-bits * moved.abs() + 2.0**-38 * moved.abs().max()).all()
        if precision == 'ieee':
            assert torch.equal(seen[b], moved)
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


@both_launches
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


@both_launches
@pytest.mark.parametrize('channels', [64, 128, 256])
def test_labels_are_the_references_for_the_models_channels(channels):
    assert_equal_to_reference(tokens(1, 100, channels), 5, 'fp16x3')


@both_launches
@pytest.mark.parametrize('factor', [1e-12, -1e12])
@pytest.mark.parametrize('precision', ['fp16x3', 'fp16'])
def test_labels_are_the_references_whatever_the_unit(precision, factor):
    assert_equal_to_reference(tokens(2, 70, 16) * factor, 5, precision)


def test_a_whole_image_keeps_to_its_own_memory(monkeypatch):
    # The interpreter runs program after program, which hides what they do to each other.
    seen = []

    class Seen:
        def __getitem__(self, grid):
            return lambda *args, **constants: (seen.extend(args), kernel[grid](*args, **constants))

    kernel = whole_image_kernel.whole_image_kernel
    monkeypatch.setattr(whole_image_kernel, 'whole_image_kernel', Seen())
    x = tokens(3, 70, 16)
    labels = backend.cluster_whole_images(x, [9, 70], 5, 'fp16x3')
    _, keys, facts, *_ = seen
    norm2, r, score, order = facts[..., :70].unbind(1)
    prepared = backend.prepare(x, 'fp16x3')
    assert torch.equal(keys, prepared.keys) and torch.equal(norm2, prepared.norm2[:, :70])
    density = backend.density(prepared, 5)
    torch.testing.assert_close(r, density[:, :70], rtol=1e-5, atol=1e-6)
    assert torch.equal(order.long(), score.sort(descending=True, stable=True).indices)
    assert torch.equal(order.long().argsort(-1), labels[1])


@both_launches
@pytest.mark.parametrize('k', [1, 2, 3, 4, 6, 9, 17, 33])
def test_labels_are_the_references_for_every_k(k):
    assert_equal_to_reference(tokens(1, 80, 16, seed=k), k, 'fp16x3')


@pytest.mark.parametrize('precision', PRECISIONS)
def test_large_maps_have_tiles_of_more_rows(precision, monkeypatch):
    monkeypatch.setattr(backend, '_MANY_ROWS_FROM', 100)
    monkeypatch.setattr(backend, '_MANY_ROWS_FROM_BATCH', 100)
    monkeypatch.setattr(backend, 'WHOLE_IMAGE', 0)
    x = tokens(2, 200, 16)
    assert backend.choose_tile(backend.prepare(x, precision), values=5).rows == 128
    assert_equal_to_reference(x, 5, precision)


@both_launches
@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('n', [50, 150])
def test_equal_distances_resolve_alike(n, precision):
    # Distinct points of a grid far from the origin: most distances are tied, none by rounding.
    side = int(n**0.5) + 1
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)) + 1000.0
    x = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(n))[:n]]
    x = x[None].to(DEVICE)
    expected = dpc_knn_reference(x.double(), some_counts(n), 5)
    found = backend.dpc_knn_triton(x, some_counts(n), 5, precision)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@both_launches
def test_constant_tokens():
    x = tokens(2, 1, 16).expand(-1, 90, -1)
    labels, order = backend.dpc_knn_triton(x, [20, 90], 5)
    assert torch.equal(order, torch.arange(90, device=DEVICE).expand(2, -1)), 'lower index first'
    assert_invariants(x, labels, order, 20, 1e-5)
    assert (labels[:, 20:] == 0).all(), 'equal distances: lowest rank'


@both_launches
@pytest.mark.parametrize('precision', ['fp16x3', 'ieee'])
def test_duplicated_tokens_keep_the_invariants(precision):
    index = torch.randint(0, 25, (70,), generator=torch.Generator().manual_seed(1))
    x = tokens(2, 25, 16)[:, index]
    for m in (1, 30, 69):
        labels, order = backend.dpc_knn_triton(x, [m, 70], 5, precision)
        assert_invariants(x, labels, order, m, 1e-5)


@both_launches
def test_images_of_a_batch_do_not_meet():
    x = tokens(3, 100, 16) * torch.tensor([1.0, 1e-3, 50.0], device=DEVICE)[:, None, None]
    together = backend.dpc_knn_triton(x, [7, 30], 5)
    alone = [backend.dpc_knn_triton(image[None], [7, 30], 5) for image in x]
    for scale, labels in enumerate(together):
        assert torch.equal(labels, torch.cat([a[scale] for a in alone]))


@both_launches
def test_counts_in_any_order_and_repeated():
    x = tokens(1, 64, 8)
    a, b, c, d = backend.dpc_knn_triton(x, (16, 64, 4, 16), 5)
    assert torch.equal(a, d)
    for found, count in ((a, 16), (b, 64), (c, 4)):
        assert torch.equal(found, backend.dpc_knn_triton(x, [count], 5)[0])
        assert found.shape == (1, 64) and found.dtype == torch.int64


@both_launches
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_as_it_is(dtype):
    x = tokens(1, 65, 16).to(dtype)
    for precision in ('fp16x3', 'ieee'):
        half = backend.dpc_knn_triton(x, [9, 30], 5, precision)
        single = backend.dpc_knn_triton(x.float(), [9, 30], 5, precision)
        assert all(torch.equal(a, b) for a, b in zip(half, single, strict=True))


@both_launches
def test_tokens_need_not_be_contiguous():
    x = tokens(2, 20, 60)
    strided = backend.dpc_knn_triton(x.transpose(1, 2), [7], 5)[0]
    assert torch.equal(strided, backend.dpc_knn_triton(x.transpose(1, 2).contiguous(), [7], 5)[0])


@both_launches
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_labels_stay_in_range_whatever_the_values(value):
    x = tokens(2, 90, 16)
    x[0, 5, 3] = value
    x[1] = value
    for count, labels in zip((9, 30, 90), backend.dpc_knn_triton(x, [9, 30, 90], 5), strict=True):
        assert labels.min() >= 0 and labels.max() < count


@pytest.mark.parametrize('n', [65, 196, 3136])
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


@both_launches
def test_default_precision_agrees_with_float32():
    same = [
        backend.dpc_knn_triton(x, [12, 48], 5)[1] == dpc_knn_reference(x.double(), [48], 5)[0]
        for x in (tokens(1, 200, 64, seed=seed) for seed in range(4))
    ]
    assert torch.cat(same).double().mean() > 0.995


@both_launches
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


def merge_case(
    batch=2, n=150, channels=20, m=40, dtype=torch.float32, shift=0.0, empty=0, single=False
):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, channels, generator=generator)
    logits = 2 * torch.randn(batch, n, generator=generator) + shift
    labels = torch.randint(0, m - empty, (batch, n), generator=generator)
    labels[:, : n // 4] = 0  # one large cluster
    x, labels, logits = x.to(DEVICE, dtype), labels.to(DEVICE), logits.to(DEVICE, dtype)
    return (x, None, n, logits) if single else (x, labels, m, logits)


def by_the_formula(x, labels, m, logits):
    """The merge and its gradients in float64, from the formula of merge.py."""
    x, logits = x.double().requires_grad_(), logits.double().requires_grad_()
    return x, logits, by_the_formula_of(x, labels, m, logits)


def by_the_formula_of(x, labels, m, logits):
    if labels is None:  # every token is a cluster of its own
        labels = torch.arange(m, device=x.device).expand(logits.shape)
    member = torch.nn.functional.one_hot(labels, m).to(x.dtype).transpose(1, 2)  # (B, M, N)
    w = logits.exp()[..., None]
    return (member @ (w * x)) / (member @ w + 1e-6)


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
        dict(single=True),
        dict(single=True, n=33, channels=7),
        dict(single=True, n=70, channels=320, shift=-14.0),
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


@pytest.mark.parametrize('single', [False, True])
def test_merge_is_merge_tokens(single):
    case = merge_case(single=single)
    plain = [t.cpu() if isinstance(t, torch.Tensor) else t for t in case]
    merged, expected = merge_triton(*case).cpu(), merge_tokens(*plain)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('single', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_merge_of_half_precision_errs_by_its_rounding_alone(dtype, single):
    x, labels, m, logits = merge_case(dtype=dtype, single=single)
    wide_x, wide_logits, expected = by_the_formula(x, labels, m, logits)
    x.requires_grad_()
    logits.requires_grad_()
    merged = merge_triton(x, labels, m, logits)
    assert merged.dtype == dtype
    half_an_ulp = torch.finfo(dtype).eps / 2
    if DEVICE == 'cpu' and dtype == torch.bfloat16:
        half_an_ulp *= 2  # the interpreter cuts bits off
    assert_close(merged, expected.detach(), half_an_ulp + 1e-6)
    merged.sum().backward()
    expected.sum().backward()
    assert x.grad.dtype == logits.grad.dtype == dtype
    assert_close(x.grad, wide_x.grad, half_an_ulp + 1e-6)
    assert_close(logits.grad, wide_logits.grad, half_an_ulp + 1e-6)


@pytest.mark.parametrize('single', [False, True])
@pytest.mark.parametrize('shift', [80, 1000, -20, -1000])
def test_merge_of_extreme_weights_stays_finite(shift, single):
    x, labels, m, logits = merge_case(shift=float(shift), empty=5, single=single)
    x.requires_grad_()
    logits.requires_grad_()
    merged = merge_triton(x, labels, m, logits)
    merged.square().sum().backward()
    assert merged.isfinite().all() and x.grad.isfinite().all() and logits.grad.isfinite().all()
    assert single or (merged[:, -5:] == 0).all(), 'an empty cluster is zero'
    assignment = None if single else labels.cpu()
    plain = merge_tokens(x.detach().cpu(), assignment, m, logits.detach().cpu())
    torch.testing.assert_close(merged.detach().cpu(), plain, rtol=1e-5, atol=1e-6)


def test_merge_is_deterministic_and_takes_strided_tensors():
    x, labels, m, logits = merge_case(n=130, m=20)
    first = merge_triton(x, labels, m, logits)
    for _ in range(3 if DEVICE == 'cpu' else 30):
        assert torch.equal(first, merge_triton(x, labels, m, logits))
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.stack([logits, logits], -1)[..., 0]
    assert torch.equal(first, merge_triton(strided, labels, m, wide))


def merged_with_gradients(function, case, dtype=None):
    """Merges at several scales, the weights from a layer; its results and all gradients."""
    x, scales, layer = case
    layer = copy.deepcopy(layer).to(dtype)
    x = x.detach().to(dtype or x.dtype).requires_grad_()
    merged = function(x, *scales, layer)
    generator = torch.Generator().manual_seed(2)
    for each in merged:
        direction = torch.randn(each.shape, generator=generator).to(each)
        each.backward(direction, retain_graph=True)
    return [*(m.detach() for m in merged), x.grad, layer.weight.grad, layer.bias.grad]


def scales_case(batch=2, n=70, channels=20, counts=(5, 20), dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, channels, generator=generator).to(DEVICE, dtype)
    labels = [
        None if m == n else torch.randint(0, m, (batch, n), generator=generator).to(DEVICE)
        for m in counts
    ]
    layer = torch.nn.Linear(channels, 1).to(DEVICE)
    layer.weight.data = torch.randn(1, channels, generator=generator).to(DEVICE) / channels**0.5
    layer.bias.data = torch.randn(1, generator=generator).to(DEVICE)
    return x, (labels, list(counts)), layer


@pytest.mark.parametrize(
    'shape',
    [
        dict(),
        dict(counts=(5, 70)),
        dict(counts=(70, 5)),
        dict(counts=(70,)),
        dict(counts=(1, 4, 16, 70)),
        dict(channels=100, n=33, counts=(2, 8)),
        dict(channels=320, n=20, counts=(3, 20)),
        dict(batch=1, n=1, counts=(1,), channels=1),
    ],
)
def test_scales_and_their_layer_are_the_formulas(shape):
    case = scales_case(**shape)
    exact = merged_with_gradients(plain_scales, case, torch.double)
    found = merged_with_gradients(merge_scales_triton, case)
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32
        assert (a - b).abs().max() <= 3e-6 * max(1, b.abs().max())


def plain_scales(x, labels, counts, layer):
    """From the formula; on a CPU merge_scales is plain PyTorch."""
    logits = layer(x).squeeze(-1)
    return [by_the_formula_of(x, a, m, logits) for a, m in zip(labels, counts, strict=True)]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scales_in_half_precision_err_at_most_twice_what_plain_pytorch_does(dtype):
    case = scales_case(n=90, counts=(6, 24, 90), dtype=dtype)
    exact = merged_with_gradients(plain_scales, case, torch.double)
    with torch.autocast(DEVICE, dtype):
        found = merged_with_gradients(merge_scales_triton, case)
        plain = merged_with_gradients(merge_scales if DEVICE == 'cpu' else plain_scales, case)
    assert [t.dtype for t in found] == [dtype] * 4 + [torch.float32] * 2
    # Triton's interpreter does not round to bfloat16, it cuts bits off.
    cut_off = DEVICE == 'cpu' and dtype == torch.bfloat16
    ulp = torch.finfo(dtype).eps * (0.5 if cut_off else 0.25)
    for a, b, c in zip(found, plain, exact, strict=True):
        error, allowed = (torch.linalg.vector_norm(t.double() - c) for t in (a, b))
        assert error <= 2 * (allowed + ulp * torch.linalg.vector_norm(c))


def test_scales_repeat_and_one_scale_alone_gives_the_same():
    case = scales_case(counts=(5, 20, 70))
    first = merged_with_gradients(merge_scales_triton, case)
    for _ in range(2 if DEVICE == 'cpu' else 30):
        again = merged_with_gradients(merge_scales_triton, case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x, (labels, counts), layer = case
    for s in range(3):
        (alone,) = merge_scales_triton(x, labels[s : s + 1], counts[s : s + 1], layer)
        assert torch.equal(alone, first[s])


# --- the operators of torch.library


def test_clustering_keeps_an_operators_contract():
    x = tokens(2, 20, 8)
    torch.library.opcheck(torch.ops.clustr_mm.dpc_knn.default, (x, [3, 20], 5, 'fp16x3'))


@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('singles', [(False,), (True,), (False, True), (False, False)])
def test_merge_keeps_an_operators_contract(singles, learned):
    cases = [merge_case(n=20, m=6, channels=8, single=single) for single in singles]
    x, *_, logits = cases[0]
    scales = [case[1] for case in cases], [case[2] for case in cases]
    weight = torch.randn(1, 8, device=DEVICE) if learned else None
    bias = torch.randn(1, device=DEVICE) if learned else None
    layer = (None, weight, bias) if learned else (logits, None, None)
    operators = torch.ops.clustr_mm
    torch.library.opcheck(operators.merge_tokens.default, (x, *scales, *layer))
    trained = [t if t is None else t.clone().requires_grad_() for t in (x, *layer)]
    arguments = (trained[0], *scales, *trained[1:])
    torch.library.opcheck(operators.merge_tokens.default, arguments)
    merged, *kept, own = operators.merge_tokens(x, *scales, *layer)
    torch.library.opcheck(
        operators.merge_tokens_backward.default,
        (torch.ones_like(merged), x, *scales, own if learned else logits, weight, *kept),
    )


def cluster_and_merge(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    assert backend.can_run_triton(x, 5) is None
    m = x.shape[1] // 4
    (labels,) = backend.dpc_knn_triton(x.detach(), [m], 5)
    return merge_triton(x, labels, m, logits)


def test_compiles_and_exports_without_a_break():
    x, _, _, logits = merge_case(n=40, channels=8)
    compiled = torch.compile(cluster_and_merge, backend='aot_eager', fullgraph=True, dynamic=True)
    for n in (40, 24):
        a = x[:, :n].clone().requires_grad_()
        b = a.detach().clone().requires_grad_()
        eager, graph = cluster_and_merge(a, logits[:, :n]), compiled(b, logits[:, :n])
        assert torch.equal(eager, graph)
        eager.square().sum().backward()
        graph.square().sum().backward()
        assert torch.equal(a.grad, b.grad)

    class Module(torch.nn.Module):
        def forward(self, x, logits):
            return cluster_and_merge(x, logits)

    program = torch.export.export(Module(), (x, logits))
    called = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert {'clustr_mm.dpc_knn.default', 'clustr_mm.merge_tokens.default'} <= called
    assert torch.equal(program.module()(x, logits), cluster_and_merge(x, logits))


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


@contextmanager
def taken_for_a_gpu(monkeypatch):
    """The model takes its kernels, which the interpreter runs."""
    with monkeypatch.context() as patches:
        if DEVICE == 'cpu':
            patches.setattr(torch.Tensor, 'is_cuda', True, raising=False)
            for module in (backend, merge_triton_module, add_norm, attend, conv_gelu):
                patches.setattr(module, 'on_device_of', lambda x: nullcontext())
        yield


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
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
