"""Label maps over images."""

import numpy as np
import pytest

from clustr_mm.visualization import (
    distinct_colors,
    draw_clusters,
    enlarge_labels,
    find_borders,
    make_sheet,
    paint_labels,
)


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


def test_clusters_of_a_small_image_are_drawn_large():
    image = np.zeros((64, 96, 3), np.uint8)
    picture = draw_clusters(image, np.arange(6).reshape(2, 3), side=256)
    assert picture.shape == (256, 384, 3)
    assert picture.any()


def test_sheet_has_a_cell_for_every_picture_and_room_for_the_words():
    picture = np.full((40, 60, 3), 77, np.uint8)
    legend = [(f'class {i}', color) for i, color in enumerate(distinct_colors(12))]
    bare = make_sheet([[picture] * 3] * 2, ['a', 'b', 'c'], cell=100)
    full = make_sheet([[picture] * 3] * 2, ['a', 'b', 'c'], legend=legend, cell=100, title='t')
    assert (bare == 77).all(-1).sum() >= 6 * 90 * 60
    assert full.shape[0] > bare.shape[0]
    assert full.shape[1] == bare.shape[1]
    with pytest.raises(ValueError, match='row 0 has 1'):
        make_sheet([[picture]], ['a', 'b'])
