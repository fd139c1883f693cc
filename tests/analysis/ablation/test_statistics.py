"""What clusters look like, on maps whose clusters are known."""

import pytest
import torch

from clustr_mm.analysis.ablation.groupings import GROUPINGS
from clustr_mm.analysis.ablation.statistics import cluster_statistics


def test_two_halves_and_a_corner():
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 3]]).view(1, 8)
    found = cluster_statistics(labels, 5, (2, 4))
    assert (found.clusters, found.largest) == (5, 4 / 8)
    assert (found.single, found.empty) == (1 / 5, 2 / 5)
    # From (0.5, 1.5): 8 * 0.25 in rows, 2 * (0.25 + 2.25) * 2 in columns.
    of_map = (8 * 0.25 + 4 * 2.25 + 4 * 0.25) / 8
    # Cluster 0: 4 tokens at 0.5 from (0.5, 0.5) in rows and columns. Cluster 1: (0, 2), (0, 3),
    # (1, 2) around (1/3, 7/3).
    of_clusters = (4 * 0.5 + (1 / 9 + 1 / 9) + (1 / 9 + 4 / 9) + (4 / 9 + 1 / 9)) / 8
    assert found.extent == pytest.approx((of_clusters / of_map) ** 0.5)


def test_extent_is_1_where_place_does_not_matter_and_small_for_a_grid():
    x = torch.zeros(1, 400, 1)
    grid = GROUPINGS['grid'](x, (25,), (20, 20))
    assert cluster_statistics(grid.labels[0], 25, (20, 20)).extent == pytest.approx(0.2, abs=0.02)
    random = torch.randint(4, (1, 400), generator=torch.Generator().manual_seed(0))
    assert cluster_statistics(random, 4, (20, 20)).extent == pytest.approx(1, abs=0.02)


def test_every_token_its_own_cluster_is_the_same_with_labels_and_without():
    labels = torch.randperm(12)[None]
    assert cluster_statistics(labels, 12, (3, 4)) == cluster_statistics(None, 12, (3, 4))


def test_a_batch_is_its_mean_and_one_token_has_no_extent():
    labels = torch.stack([torch.zeros(4, dtype=torch.int64), torch.arange(4)])
    found = cluster_statistics(labels, 4, (1, 4))
    assert (found.largest, found.single, found.empty) == (0.625, 0.5, 0.375)
    assert found.extent == pytest.approx(0.5)
    assert cluster_statistics(labels[:1, :1], 1, (1, 1)).extent == 0
