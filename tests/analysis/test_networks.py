"""Whole models as functions of images: which layers run, on how many regions."""

import pytest
import torch

pytest.importorskip('mmdet.models')
pytest.importorskip('mmseg.models')

from clustr_mm import ClusTR
from clustr_mm.analysis.networks import Network
from clustr_mm.analysis.tasks import build_task


def shapes(network, train, side=64, batch=2):
    with torch.set_grad_enabled(train):
        outputs = network.train(train)(torch.empty(batch, 3, side, side, device='meta'))
    return [tuple(t.shape) for t in outputs]


def test_a_detectors_heads_take_as_many_regions_as_they_have():
    network = Network(build_task('mask_rcnn', 'clustr_t', (64, 64))).to('meta')
    levels = [(2, 3 * n, s, s) for n in (1, 4) for s in (16, 8, 4, 2, 1)]
    allowed = [(2000, 81), (2000, 320), (200, 80, 28, 28)]
    assert shapes(network, train=False) == [*levels, *allowed]
    sampled = [(1024, 81), (1024, 320), (256, 80, 28, 28)]
    assert shapes(network, train=True) == [*levels, *sampled]


def test_a_segmentors_auxiliary_head_runs_in_training():
    network = Network(build_task('upernet', 'clustr_t', (64, 64))).to('meta')
    assert shapes(network, train=False) == [(2, 150, 16, 16)]
    assert shapes(network, train=True) == [(2, 150, 16, 16), (2, 150, 4, 4)]


def test_a_backbone_gives_its_maps():
    network = Network(ClusTR('tiny', crop_padding=True)).to('meta')
    maps = [(1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2), (1, 512, 1, 1)]
    assert shapes(network, train=False, side=32, batch=1) == maps
