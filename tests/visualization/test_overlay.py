"""Label maps over images."""

import numpy as np
import pytest

from clustr_mm.visualization import distinct_colors, draw_clusters, paint_labels
from clustr_mm.visualization.overlay import enlarge_labels, find_borders


def test_colors_differ():
    colors = distinct_colors(64).astype(int)
    assert len(np.unique(colors, axis=0)) == 64
    first = colors[:8]
    distances = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(8, dtype=int)
    assert distances.min() > 60


def test_a_token_covers_its_own_pixels():
    labels = np.array([[0, 1], [2, 3]])
    large = enlarge_labels(labels, (4, 6))
    assert np.array_equal(large, np.kron(labels, np.ones((2, 3), int)))
    assert enlarge_labels(labels, (5, 7)).shape == (5, 7)


@pytest.mark.parametrize('width', [1, 2, 3])
def test_borders_run_between_regions_and_nowhere_else(width):
    labels = np.zeros((20, 30), int)
    labels[:, 15:] = 1
    borders = find_borders(labels, width)
    assert np.array_equal(borders.sum(1), np.full(20, width))
    assert borders[:, 14].all()
    assert not find_borders(np.zeros((5, 5), int), width).any()


def test_painting_tints_regions_and_leaves_what_is_ignored():
    image = np.full((10, 10, 3), 100, np.uint8)
    labels = np.zeros((10, 10), int)
    labels[:, 5:] = 255
    painted = paint_labels(image, labels, [[200, 0, 0]], alpha=0.5, border=0, ignore=255)
    assert painted[0, 0].tolist() == [150, 50, 50]
    assert painted[0, 9].tolist() == [100, 100, 100]


@pytest.mark.parametrize('size', [(64, 96), (48, 3000), (16, 1600)])
def test_a_picture_is_enlarged_to_so_many_pixels_and_no_more(size):
    labels = np.arange(6).reshape(2, 3)
    picture = draw_clusters(np.zeros((*size, 3), np.uint8), labels, side=256)
    pixels = max(256**2, size[0] * size[1])
    assert picture.shape[0] * picture.shape[1] == pytest.approx(pixels, rel=0.02)
    assert picture.any()
