"""Exponents of time and memory: linear memory stays linear."""

import sys

import pytest
import torch

from clustr_mm.analysis.growth import Point, exponents, fit_exponent, measure_growth, plot_growth
from clustr_mm.analysis.roofline import why_not_backend

CPU = torch.device('cpu')


def test_exponents_are_the_slopes():
    tokens = [1000, 2000, 4000, 8000]
    assert fit_exponent(tokens, [3 * n**1.5 for n in tokens]) == pytest.approx(1.5)
    assert fit_exponent(tokens, [7.0] * 4) == pytest.approx(0)
    points = [Point(n, 2e-6 * n**2, 1e-3 * n) for n in tokens]
    assert exponents(points) == pytest.approx((2, 1))
    assert exponents(points[:1]) == (None, None)
    assert exponents([Point(n, 1.0, None) for n in tokens])[1] is None
    for bad in ([1000, 1000], [1, 2]), ([1000, 2000], [0.0, 1.0]):
        with pytest.raises(ValueError, match='an exponent needs two numbers of tokens'):
            fit_exponent(*bad)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('backend', ['tiled', 'native'])
def test_memory_grows_no_faster_than_the_tokens(backend):
    if reason := why_not_backend(backend, torch.zeros(1, 8, 64)):
        pytest.skip(reason)
    points = list(measure_growth(backend, (1500, 3000, 6000, 12000), 64, CPU, runs=2))
    _, of_memory = exponents(points)
    assert of_memory <= 1.1, points
    # The definition needs 600 MB for one of its matrices.
    assert points[-1].peak_mib < 60


def test_the_definition_is_measured_only_while_its_matrices_are_small():
    points = list(measure_growth('reference', (100, 200, 5000), 8, CPU, runs=1))
    assert [point.tokens for point in points] == [100, 200], 'more would take gigabytes'


def test_a_picture_of_it(tmp_path):
    growth = {
        'tiled': [Point(n, 1e-6 * n**1.8, 1e-3 * n) for n in (1000, 4000, 16000)],
        'native': [Point(n, 1e-7 * n**1.9, None) for n in (1000, 4000, 16000)],
    }
    path = tmp_path / 'growth.svg'
    plot_growth(growth, path, 'dpc_knn')
    assert path.stat().st_size > 5000
