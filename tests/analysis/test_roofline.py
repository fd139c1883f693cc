"""The matrix product that the clustering is measured against."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clustr_mm.analysis import roofline
from clustr_mm.analysis.roofline import (
    cluster_counts,
    matrix_product,
    product_of,
    time_call,
    why_not_backend,
)

CPU = torch.device('cpu')


@pytest.mark.parametrize('tile', [2**21, 500])
def test_the_product_has_every_pair_of_tokens(tile, monkeypatch):
    monkeypatch.setattr(roofline, '_TILE_CPU', tile)
    with FlopCounterMode(display=False) as counter:
        matrix_product(2, 70, 16, torch.float32, CPU)()
    assert counter.get_total_flops() == 2 * 2 * 70 * 70 * 16


@pytest.mark.parametrize(('precision', 'products'), [('fp16x3', 3), ('fp16', 1), ('ieee', 1)])
def test_it_multiplies_what_the_kernels_multiply(precision, products):
    with FlopCounterMode(display=False) as counter:
        product_of(precision, 1, 40, 8, CPU)()
    assert counter.get_total_flops() == 2 * 40 * 40 * 8 * products
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_times_are_the_processors():
    assert time_call(lambda: time.sleep(0.05), CPU, 0.1) < 0.02


def test_backends_that_are_left_out_say_why():
    x = torch.zeros(1, 4000, 8)
    assert why_not_backend('tiled', x) is None
    assert 'square' in why_not_backend('reference', x)
    assert 'interprets' in why_not_backend('triton', x)
    assert 'no such backend' in why_not_backend('faiss', x)


def test_counts_are_those_of_stage_1():
    assert cluster_counts(3136) == (49, 196)
    assert cluster_counts(66_800) == (1043, 4172)
    assert cluster_counts(2) == (1, 2)
