"""What a model computes: three ways of counting, the design's figures, and a real forward pass."""

import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small import NARROW
from torch.utils.flop_counter import FlopCounterMode

from clustr_mm import ClusTR
from clustr_mm.analysis import build_empty
from clustr_mm.analysis.flops import Count, Macs, closed_formula, count_macs, flop_formulas
from clustr_mm.analysis.groupings import regroup
from clustr_mm.engine import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'get_flops.py'))

ARCH = {**NARROW, 'mlp_ratios': (4, 4, 2, 2)}


def test_the_small_model_is_counted_whole():
    count = count_macs(ClusTR(arch='small'), 224, 224)
    macs, giga = count.backbone, 1e9
    assert (macs.linear + macs.convolution) / giga == pytest.approx(4.60, abs=0.005)
    assert (macs.attention + macs.fine_attention) / giga == pytest.approx(0.87, abs=0.005)
    assert macs.distances / giga == pytest.approx(2.41, abs=0.005)
    assert macs.assignment / giga == pytest.approx(0.25, abs=0.005)
    assert count.dispatched == macs.total
    assert count.formula == macs.total
    # N^2 comparisons: 3 blocks of 3136 tokens, 5 of 784, 13 of 196
    assert count.comparisons == 3 * 3136**2 + 5 * 784**2 + 13 * 196**2


@pytest.mark.parametrize(('arch', 'printed'), [('tiny', 2.15), ('small', 4.8), ('base', 7.48)])
def test_the_published_figures_are_the_sum_of_the_kinds_that_they_hold(arch, printed):
    published = closed_formula(ClusTR(arch=arch), 224, 224).published / 1e9
    assert published == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize('shape', [(224, 224), (97, 150), (20, 33)])
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(recluster_every=0),
        dict(recluster_every=2, out_indices=(0, 2)),
        dict(cluster_window=10),
        dict(cluster_window=10, fine_scope='window'),
        dict(scales=(1, 2, 4)),
        dict(scales=(1,), crop_padding=True),
    ],
    ids=str,
)
def test_three_ways_agree(shape, options):
    count = count_macs(ClusTR(ARCH, **options), *shape)
    assert count.formula == count.backbone.total == count.whole.total > 0
    assert count.dispatched == count.formula


def test_another_grouping_has_no_closed_formula():
    model = ClusTR(ARCH)
    regroup(model, 'grid')
    assert count_macs(model, 64, 64).formula is None


def test_the_count_on_the_meta_device_is_that_of_a_real_pass():
    model = ClusTR(ARCH, backend='native').eval()
    try:
        with (
            torch.no_grad(),
            FlopCounterMode(display=False, custom_mapping=flop_formulas()) as real,
        ):
            model(torch.randn(1, 3, 70, 90))
    except ValueError as error:
        pytest.skip(str(error))  # no compiler here
    assert real.get_total_flops() // 2 == count_macs(model, 70, 90).whole.total


@pytest.mark.parametrize(
    ('path', 'shape', 'parts'),
    [
        ('mmseg/upernet_clustr_t_mini', (96, 96), {'heads'}),
        ('mmseg/semfpn_clustr_t_ade20k', (512, 512), {'neck', 'heads'}),
        ('mmdet/mask_rcnn_clustr_t_coco_1x', (800, 1333), {'neck', 'heads'}),
        ('mmpose/topdown_clustr_t_wholebody_256x192', (256, 192), {'neck', 'heads'}),
        ('mmpose/topdown_clustr_s_simcc_wholebody_256x192', (256, 192), {'heads'}),
        ('mmpretrain/clustr_t_imagenet', (224, 224), {'heads'}),
    ],
)
def test_whole_models_of_all_libraries(path, shape, parts):
    cfg = Config.fromfile(str(CONFIGS / f'{path}.py'))
    pytest.importorskip(cfg.default_scope)
    count = count_macs(build_empty(cfg), *shape)
    assert parts < set(count.parts)
    assert count.dispatched == pytest.approx(count.whole.total, rel=1e-3)
    assert count.formula == count.backbone.total


def test_a_two_stage_detectors_heads_see_all_proposals():
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(str(CONFIGS / 'mmdet' / 'mask_rcnn_clustr_t_coco_1x.py'))
    before = count_macs(build_empty(cfg), 64, 64).parts['heads'].total
    cfg.model.test_cfg.rpn.max_per_img += 1
    # two layers of 1024 and those for 81 classes and 80 boxes
    region = 7 * 7 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    assert count_macs(build_empty(cfg), 64, 64).parts['heads'].total - before == region


def test_a_shape_that_is_none_is_refused():
    with pytest.raises(ValueError, match='0 x 5; use at least 1 x 1'):
        count_macs(ClusTR(ARCH), 0, 5)


def test_the_tool_prints_both_ways_of_counting(capsys):
    pytest.importorskip('mmpretrain')
    TOOL['main']([str(CONFIGS / 'mmpretrain' / 'clustr_s_imagenet.py'), '--shape', '224', '224'])
    printed = capsys.readouterr().out
    assert '| sum     |  4.294 | 0.308 |     0.177 | 0.688 |     2.409 |      0.248 |' in printed
    assert "FlopCounterMode: 8.127 (+0.00%)\nclosed formula, the backbone's: 8.127" in printed
    assert 'the published way of counting: 4.778' in printed
    assert 'it leaves out 3.349 of 8.127: attention to the finer scales 0.688' in printed
    assert 'parameters: 22.69 M (backbone 22.18, neck 0.00, heads 0.51)' in printed


def test_ways_of_counting_that_differ_end_the_tool():
    count = Count({'heads': Macs(linear=1000)}, dispatched=1006)
    with pytest.raises(UserError, match='has operations that one of them does not know'):
        TOOL['check']('torch', count.dispatched, count.whole.total)
