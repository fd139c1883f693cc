"""Windows: an even split, fair shares, and numbers that are global again."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clustr_mm.ops.clustering import dpc_knn, split_map, windowed_dpc_knn

CPU = torch.device('cpu')


def test_detection_image_has_24_windows():
    # 800 x 1333: 200 x 334 tokens at stage 1 (clustering.md, knob 2).
    windows = split_map(200, 334, 56, (1043, 4172), CPU)
    assert sum(len(g.tokens) for g in windows.groups) == 24
    assert windows.num_clusters == (1043, 4172)


@pytest.mark.parametrize(
    ('height', 'width', 'window'), [(1, 1, 4), (7, 13, 3), (20, 9, 5), (30, 41, 8), (10, 10, 56)]
)
def test_windows_are_a_partition_of_tokens_and_clusters(height, width, window):
    n = height * width
    counts = (max(1, n // 16), max(1, n // 4), n)
    windows = split_map(height, width, window, counts, CPU)
    tokens = torch.cat([g.tokens.flatten() for g in windows.groups])
    assert tokens.sort().values.tolist() == list(range(n))
    for s, total in enumerate(windows.num_clusters):
        clusters = torch.cat([g.clusters[s].flatten() for g in windows.groups])
        assert clusters.sort().values.tolist() == list(range(total))
        assert total >= counts[s]
    for group in windows.groups:
        assert all(1 <= c.shape[1] <= group.tokens.shape[1] for c in group.clusters)


def test_every_window_is_clustered_by_itself():
    height, width, n = 12, 18, 216
    x = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windows = split_map(height, width, 6, (12, 48, n), CPU)
    coarse, fine, single = windowed_dpc_knn(x, windows)
    assert single is None
    assert [coarse.unique().numel(), fine.unique().numel()] == [12, 48]
    first = [r * width + c for r in range(6) for c in range(6)]
    assert torch.equal(coarse[:, first], dpc_knn(x[:, first], 2))
    assert torch.equal(fine[:, first], dpc_knn(x[:, first], 8))
    second = [r * width + c for r in range(6) for c in range(6, 12)]
    assert torch.equal(coarse[:, second], dpc_knn(x[:, second], 2) + 2)


def test_tiny_windows_have_a_cluster_each():
    windows = split_map(8, 8, 2, (1, 4), CPU)
    assert windows.num_clusters == (16, 16)
    coarse, fine = windowed_dpc_knn(torch.randn(1, 64, 4), windows)
    assert torch.equal(coarse, fine) and len(coarse.unique()) == 16


def test_windows_made_in_a_mode_serve_training_later():
    counts = (3, 11)
    with FakeTensorMode():
        split_map(13, 9, 4, counts, CPU)
    with torch.inference_mode():
        split_map(13, 9, 4, counts, CPU)
    windows = split_map(13, 9, 4, counts, CPU)
    for group in windows.groups:
        assert type(group.tokens) is torch.Tensor
        assert not group.tokens.is_inference()
