"""Windows: an even split, fair shares, and numbers that are global again."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clustr_mm.ops.clustering import dpc_knn, split_map, windowed_dpc_knn, windows

CPU = torch.device('cpu')


def test_detection_image_has_24_windows():
    # 800 x 1333: 200 x 334 tokens at stage 1.
    split = split_map(200, 334, 56, (1043, 4172), CPU)
    assert sum(len(g.tokens) for g in split.groups) == 24
    assert split.num_clusters == (1043, 4172)


@pytest.mark.parametrize(
    ('height', 'width', 'window'), [(1, 1, 4), (7, 13, 3), (20, 9, 5), (30, 41, 8), (10, 10, 56)]
)
def test_windows_are_a_partition_of_tokens_and_clusters(height, width, window):
    n = height * width
    counts = (max(1, n // 16), max(1, n // 4), n)
    split = split_map(height, width, window, counts, CPU)
    tokens = torch.cat([g.tokens.flatten() for g in split.groups])
    assert tokens.sort().values.tolist() == list(range(n))
    for s, total in enumerate(split.num_clusters):
        clusters = torch.cat([g.clusters[s].flatten() for g in split.groups])
        assert clusters.sort().values.tolist() == list(range(total))
        assert total >= counts[s]
    for group in split.groups:
        assert all(1 <= c.shape[1] <= group.tokens.shape[1] for c in group.clusters)


def test_every_window_is_clustered_by_itself():
    height, width, n = 12, 18, 216
    x = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    split = split_map(height, width, 6, (12, 48, n), CPU)
    coarse, fine, single = windowed_dpc_knn(x, split)
    assert single is None
    assert [coarse.unique().numel(), fine.unique().numel()] == [12, 48]
    first = [r * width + c for r in range(6) for c in range(6)]
    assert torch.equal(coarse[:, first], dpc_knn(x[:, first], 2))
    assert torch.equal(fine[:, first], dpc_knn(x[:, first], 8))
    second = [r * width + c for r in range(6) for c in range(6, 12)]
    assert torch.equal(coarse[:, second], dpc_knn(x[:, second], 2) + 2)


@pytest.mark.parametrize('size', [(13, 19), (20, 9)])
def test_windows_of_any_shapes_and_shares_are_clustered_as_if_alone(size, monkeypatch):
    n = size[0] * size[1]
    x = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    split = split_map(*size, 6, (n // 16, n // 5), CPU)
    calls = []
    monkeypatch.setattr(
        windows, 'dpc_knn', lambda x, *a: calls.append(x.shape[1]) or dpc_knn(x, *a)
    )
    labels = windowed_dpc_knn(x, split)
    assert len(calls) == len(set(calls)), 'one call for all windows of a size'
    assert len(split.groups) > len(calls), 'or this shows nothing'
    for group in split.groups:
        for tokens, *clusters in zip(group.tokens, *group.clusters, strict=True):
            for of_scale, label in zip(clusters, labels, strict=True):
                alone = dpc_knn(x[:, tokens], len(of_scale))
                assert torch.equal(label[:, tokens], of_scale[alone])


def test_tiny_windows_have_a_cluster_each():
    split = split_map(8, 8, 2, (1, 4), CPU)
    assert split.num_clusters == (16, 16)
    coarse, fine = windowed_dpc_knn(torch.randn(1, 64, 4), split)
    assert torch.equal(coarse, fine) and len(coarse.unique()) == 16


def test_windows_made_in_a_mode_serve_training_later():
    counts = (3, 11)
    with FakeTensorMode():
        split_map(13, 9, 4, counts, CPU)
    with torch.inference_mode():
        split_map(13, 9, 4, counts, CPU)
    split = split_map(13, 9, 4, counts, CPU)
    for group in split.groups:
        assert type(group.tokens) is torch.Tensor
        assert not group.tokens.is_inference()
