"""Every backend against the definition, and the definition against its own words."""

import pytest
import torch
from helpers import assert_invariants, curve, sky, some_counts

from clustr_mm.ops.clustering import BACKENDS, can_run_native, dpc_knn, padded_dpc_knn

# Those that take float64, in which rounding decides nothing (the others: test_native.py,
# test_triton.py).
EXACT = sorted(set(BACKENDS) - {'native', 'triton'})
FAST = sorted(set(EXACT) - {'reference'})


def tokens(batch: int, n: int, channels: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(
        batch, n, channels, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize(
    ('batch', 'n', 'channels'),
    [
        *[(2, n, 8) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 63)],
        (4, 196, 64),
        (3, 333, 3),
        (1, 1499, 16),
        (2, 1501, 1),
        (1, 3000, 64),
    ],
)
def test_equals_reference(backend, batch, n, channels):
    x = tokens(batch, n, channels, seed=n)
    counts = some_counts(n)
    expected = dpc_knn(x, counts, backend='reference')
    for count, a, b in zip(counts, expected, dpc_knn(x, counts, backend=backend), strict=True):
        assert torch.equal(a, b), f'M = {count}'


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('k', [1, 2, 5, 9, 40])
def test_equals_reference_for_every_k(backend, k):
    x = tokens(2, 150, 16)
    for m in (1, 2, 75, 149, 150):
        assert torch.equal(dpc_knn(x, m, k, 'reference'), dpc_knn(x, m, k, backend))


@pytest.mark.parametrize('backend', FAST)
def test_every_count_from_1_to_n(backend):
    x = tokens(1, 60, 4)
    counts = range(1, 61)
    expected = dpc_knn(x, counts, backend='reference')
    found = dpc_knn(x, counts, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('n', [50, 400, 1700])
def test_equal_distances_resolve_alike(backend, n):
    # Distinct points of a grid far from the origin: most distances are tied, none by rounding.
    side = int(n**0.5) + 1
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double() + 1000
    x = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(n))[:n]][None]
    for m in some_counts(n):
        assert torch.equal(dpc_knn(x, m, backend='reference'), dpc_knn(x, m, backend=backend))


@pytest.mark.parametrize('backend', EXACT)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_constant_tokens(backend, dtype):
    x = tokens(2, 1, 16, dtype=dtype).expand(-1, 90, -1)
    order = dpc_knn(x, 90, backend=backend)
    assert torch.equal(order, torch.arange(90).expand(2, -1)), 'equal scores: lower index first'
    labels = dpc_knn(x, 20, backend=backend)
    assert_invariants(x, labels, order, 20, 1e-12)
    assert (labels[:, 20:] == 0).all(), 'equal distances: lowest rank'


@pytest.mark.parametrize('backend', EXACT)
@pytest.mark.parametrize('n', [40, 700, 1900])
def test_duplicated_tokens_keep_the_invariants(backend, n):
    x = tokens(2, n // 3, 16)
    index = torch.randint(0, n // 3, (n,), generator=torch.Generator().manual_seed(1))
    x = x[:, index]
    for m in (1, n // 10, n // 2, n - 1, n):
        labels, order = dpc_knn(x, [m, n], backend=backend)
        assert_invariants(x, labels, order, m, 1e-12)


@pytest.mark.parametrize('backend', EXACT)
def test_permuting_the_tokens_permutes_the_clusters(backend):
    x = tokens(2, 500, 32)
    permutation = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    for m in (1, 10, 333, 500):
        straight = dpc_knn(x, m, backend=backend)
        assert torch.equal(dpc_knn(x[:, permutation], m, backend=backend), straight[:, permutation])


@pytest.mark.parametrize('backend', EXACT)
def test_images_of_a_batch_do_not_meet(backend):
    x = tokens(4, 300, 16)
    together = dpc_knn(x, 30, backend=backend)
    assert torch.equal(together, torch.cat([dpc_knn(i[None], 30, backend=backend) for i in x]))


@pytest.mark.parametrize('backend', EXACT)
def test_counts_in_any_order_and_form(backend):
    x = tokens(2, 64, 8)
    a, b, c = dpc_knn(x, (16, 64, 4), backend=backend)
    assert torch.equal(a, dpc_knn(x, 16, backend=backend))
    assert torch.equal(b, dpc_knn(x, 64, backend=backend))
    assert torch.equal(c, dpc_knn(x, [4], backend=backend)[0])
    assert a.shape == (2, 64) and a.dtype == torch.int64


@pytest.mark.parametrize('backend', EXACT)
def test_three_far_groups_are_three_clusters(backend):
    x = tokens(1, 300, 4) * 0.1
    truth = torch.arange(300) % 3
    x = x + torch.eye(4, dtype=x.dtype)[truth] * 100
    labels = dpc_knn(x, 3, backend=backend)[0]
    assert all(len(labels[truth == g].unique()) == 1 for g in range(3))
    assert len(labels.unique()) == 3


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = tokens(2, 400, 32).to(dtype)
    assert torch.equal(dpc_knn(x, 50), dpc_knn(x.float(), 50))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(dpc_knn(x, 50), dpc_knn(x.float(), 50))


@pytest.mark.parametrize('backend', [None, 'traceable'])
def test_float32_agrees_with_float64_for_nearly_all_tokens(backend):
    x = tokens(1, 2500, 64, dtype=torch.float32) + 30  # a common offset, as features have
    same = dpc_knn(x, 156, backend=backend) == dpc_knn(x.double(), 156, backend='reference')
    assert same.double().mean() > 0.98


@pytest.mark.parametrize('backend', [None, 'tiled'])
@pytest.mark.parametrize(
    ('x', 'precise'),
    [
        (curve(1024), True),
        (sky(32), True),
        (sky(32, slope=0.3), False),
        (sky(32, slope=1.0), True),
    ],
    ids=['curve', 'sky', 'steeper', 'steepest'],
)
def test_nearly_equal_tokens_keep_their_order(backend, x, precise):
    # The definition itself, in float32, ranks some centres of a sky the other way, and so may its
    # backends; the compiled one takes near distances more precisely, and errs on one sky alone.
    counts = [64, 256]
    exact = dpc_knn(x.double(), counts, backend='reference')
    in_float32 = dpc_knn(x, counts, backend='reference')
    compiled = backend is None and can_run_native(x) is None
    for a, b, c in zip(dpc_knn(x, counts, backend=backend), exact, in_float32, strict=True):
        bar = 0.99 if compiled and precise else min(0.99, (c == b).double().mean())
        assert (a == b).double().mean() >= bar


@pytest.mark.parametrize('backend', [None, 'reference', 'tiled'])
@pytest.mark.parametrize('channels', [3, 64])
def test_each_others_nearest_tie(backend, channels):
    for seed in range(3):  # with k = 2 the density is the distance of the nearest
        x = tokens(2, 300, channels, seed, torch.float32)
        for y in (x, x.double()) if backend else (x,):
            found, expected = (dpc_knn(y, 40, 2, b) for b in (backend, 'reference'))
            assert torch.equal(found, expected)


def test_no_gradient_and_no_noise():
    x = tokens(2, 200, 16).requires_grad_()
    first = dpc_knn(x, 20)
    assert not first.requires_grad
    assert all(torch.equal(first, dpc_knn(x, 20)) for _ in range(3))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_clusters=0), 'num_clusters is 0'),
        (dict(num_clusters=11), 'num_clusters is 11; with 10 tokens use 1 to 10'),
        (dict(num_clusters=[]), 'num_clusters is empty'),
        (dict(num_clusters=3, k=0), 'k is 0'),
        (dict(num_clusters=3, k=5.0), 'k is 5.0; use an integer'),
        (dict(num_clusters=3.0), 'num_clusters is 3.0; use an integer'),
        (dict(num_clusters=[1.0, 4]), 'num_clusters is 1.0; use an integer'),
        (dict(num_clusters=3, backend='fast'), "backend is 'fast'; use None or one of"),
        (dict(num_clusters=3, x=torch.zeros(10, 4)), r'x has shape \(10, 4\)'),
        (dict(num_clusters=3, x=torch.zeros(1, 0, 4)), 'none of them 0'),
        (dict(num_clusters=3, x=torch.zeros(1, 10, 4, dtype=torch.int64)), 'floating dtype'),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        dpc_knn(**{'x': torch.zeros(1, 10, 4), **arguments})


@pytest.mark.parametrize('shape', [(0, 5, 4), (2, 0, 4)])
def test_empty_sequences_are_refused_as_empty_images_are(shape):
    with pytest.raises(ValueError, match='none of them 0'):
        padded_dpc_knn(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool), lambda n: (1,))


@pytest.mark.parametrize('backend', [None, *EXACT])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 3e38])
def test_what_is_not_finite_has_valid_labels_and_stays_in_its_image(backend, dtype, value):
    x = tokens(4, 90, 16, dtype=dtype)
    expected = dpc_knn(x, [9, 30, 90], backend=backend)
    x[0, 5, 3] = value
    x[1] = value
    x[2, ::2, 0], x[2, 1::2, 0] = value, -value
    for count, labels, of_finite in zip(
        (9, 30, 90), dpc_knn(x, [9, 30, 90], backend=backend), expected, strict=True
    ):
        assert labels.min() >= 0 and labels.max() < count
        assert torch.equal(labels[3], of_finite[3])


def test_a_whole_batch_of_nan_has_valid_labels():
    for backend in EXACT:
        labels = dpc_knn(torch.full((2, 40, 4), torch.nan), 7, backend=backend)
        assert labels.unique().tolist() == list(range(7))
