"""What a model computes: the design's figures, the published ones, and a real forward pass."""

import runpy
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small import NARROW
from torch.utils.flop_counter import FlopCounterMode

from clustr_mm import ClusTR
from clustr_mm.analysis.flops import PUBLISHED_KINDS, count_macs, flop_formulas
from clustr_mm.analysis.parameters import build_empty
from clustr_mm.analysis.peers import build_backbone

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'get_flops.py'))
SHAPES = [(224, 224), (97, 150), (20, 33)]


def total(*arguments):
    return sum(count_macs(*arguments).values(), Counter())


def test_the_small_model_is_counted_whole():
    parts = count_macs(ClusTR(arch='small'), 224, 224)
    assert list(parts) == ['stage 1', 'stage 2', 'stage 3', 'stage 4']
    macs = sum(parts.values(), Counter())
    assert (macs['linear'] + macs['convolution']) / 1e9 == pytest.approx(4.60, abs=0.005)
    assert macs['attention'] / 1e9 == pytest.approx(0.177, abs=0.0005)
    assert macs['fine'] / 1e9 == pytest.approx(0.688, abs=0.0005)
    assert macs['clustering'] / 1e9 == pytest.approx(2.41 + 0.25, abs=0.01)
    assert macs.total() / 1e9 == pytest.approx(8.127, abs=0.0005)


@pytest.mark.parametrize(('arch', 'printed'), [('tiny', 2.15), ('small', 4.8), ('base', 7.48)])
def test_the_published_figures_are_the_sum_of_the_kinds_that_they_hold(arch, printed):
    macs = total(ClusTR(arch=arch), 224, 224)
    published = sum(macs[kind] for kind in PUBLISHED_KINDS) / 1e9
    assert published == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize(
    ('name', 'published'), [('resnet50', 4.1), ('swin_t', 4.5), ('pvtv2_b2', 4.0)]
)
def test_other_backbones_count_what_their_papers_say(name, published):
    try:
        model, _ = build_backbone(name, (224, 224))
    except ValueError as error:
        pytest.skip(str(error))
    assert total(model, 224, 224).total() / 1e9 == pytest.approx(published, abs=0.05)


def formula(height, width, scales=(1, 4), every=1):
    """NARROW's multiply-adds by hand: channels, blocks, reductions and the MLP's ratio of 2."""
    macs, hw, c_in, stride, kernel = Counter(), (height, width), 3, 4, 7
    for c, blocks, r in zip((16, 32, 48, 64), (1, 2, 3, 1), (8, 4, 2, 1), strict=True):
        hw = tuple(-(-side // stride) for side in hw)
        n = hw[0] * hw[1]
        macs['convolution'] += n * c * c_in * kernel**2 + blocks * 9 * n * 2 * c
        macs['linear'] += blocks * n * c * (4 * c + 2 * c)  # the MLP, q and the closing projection
        if r == 1:
            macs['linear'] += blocks * n * 2 * c * c
            macs['attention'] += blocks * 2 * n * n * c
        else:
            counts = [min(n, scale * max(1, n // r**2)) for scale in scales]
            below = [m for m in counts if m < n]
            anew = blocks if every == 1 else -(-blocks // (every or blocks))
            macs['linear'] += blocks * (n * c + sum(counts) * 2 * c * c)
            macs['attention'] += blocks * 2 * n * counts[0] * c
            macs['fine'] += blocks * 2 * n * sum(counts[1:]) * c
            macs['clustering'] += anew * n * (n + max(below)) * c if below else 0
            macs['merge'] += blocks * len(below) * n * (c + 1)
        c_in, stride, kernel = c, 2, 3
    return +macs


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(recluster_every=0),
        dict(recluster_every=2),
        dict(scales=(1, 2, 4)),
        dict(scales=(1,), crop_padding=True),
    ],
    ids=str,
)
def test_every_kind_is_the_formulas(shape, options):
    given = {**NARROW, 'mlp_ratios': (2, 2, 2, 2)}
    expected = formula(*shape, options.get('scales', (1, 4)), options.get('recluster_every', 1))
    assert total(ClusTR(given, **options), *shape) == expected


@pytest.mark.parametrize('shape', SHAPES[:2])
def test_windows_save_distances_and_their_scope_fine_attention(shape):
    whole = total(ClusTR(NARROW), *shape)
    windows = total(ClusTR(NARROW, cluster_window=10), *shape)
    scope = total(ClusTR(NARROW, cluster_window=10, fine_scope='window'), *shape)
    assert windows['clustering'] == scope['clustering'] < 0.6 * whole['clustering']
    assert scope['fine'] < 0.6 * windows['fine'] and scope['attention'] == windows['attention']


@pytest.mark.parametrize('backend', ['reference', 'tiled', 'native'])
def test_the_count_on_the_meta_device_is_that_of_a_real_pass_on_any_backend(backend):
    model = ClusTR(NARROW, backend=backend).eval()
    try:
        with (
            torch.no_grad(),
            FlopCounterMode(display=False, custom_mapping=flop_formulas()) as real,
        ):
            model(torch.randn(1, 3, 70, 90))
    except ValueError as error:
        pytest.skip(str(error))  # no compiler here
    assert real.get_total_flops() // 2 == total(model, 70, 90).total()


@pytest.mark.parametrize(
    ('path', 'shape', 'parts'),
    [
        ('mmseg/upernet_clustr_pvtb0_mini', (96, 96), {'heads'}),
        ('mmseg/semfpn_clustr_t_ade20k', (512, 512), {'neck', 'heads'}),
        ('mmdet/mask_rcnn_clustr_t_coco_1x', (800, 1333), {'neck', 'heads'}),
        ('mmpose/topdown_clustr_t_wholebody_256x192', (256, 192), {'neck', 'heads'}),
        ('mmpose/topdown_clustr_s_simcc_wholebody_256x192', (256, 192), {'heads'}),
        ('mmpretrain/clustr_t_imagenet', (224, 224), {'heads'}),
        ('mmdet/dino_clustr_s_coco_12e', (224, 224), {'neck', 'heads'}),  # of 900 queries
        ('mmdet/mask2former_clustr_s_coco_50e', (64, 64), {'heads'}),
        ('mmseg/mask2former_clustr_pvtb2_ade20k', (64, 64), {'heads'}),
    ],
)
def test_whole_models_of_all_libraries(path, shape, parts):
    cfg = Config.fromfile(str(CONFIGS / f'{path}.py'))
    pytest.importorskip(cfg.default_scope)
    count = count_macs(build_empty(cfg), *shape)
    assert set(count) == {f'stage {i}' for i in range(1, 5)} | parts
    alone = count_macs(build_empty(cfg).backbone, *shape)
    assert {part: count[part] for part in alone} == alone


def test_a_two_stage_detectors_heads_see_all_proposals():
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(str(CONFIGS / 'mmdet' / 'mask_rcnn_clustr_t_coco_1x.py'))
    before = count_macs(build_empty(cfg), 64, 64)['heads'].total()
    cfg.model.test_cfg.rpn.max_per_img += 1
    # two layers of 1024 and those for 81 classes and 80 boxes
    region = 7 * 7 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    assert count_macs(build_empty(cfg), 64, 64)['heads'].total() - before == region


def test_a_panoptic_detectors_semantic_head_is_counted():
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(str(CONFIGS / 'mmdet' / 'panoptic_fpn_clustr_s_coco_1x.py'))
    before = count_macs(build_empty(cfg), 64, 64)['heads'].total()
    cfg.model.semantic_head.num_stuff_classes += 1
    assert count_macs(build_empty(cfg), 64, 64)['heads'].total() - before == 128 * 16 * 16


def test_a_shape_that_is_none_is_refused():
    with pytest.raises(ValueError, match='0 x 5; use at least 1 x 1'):
        count_macs(ClusTR(NARROW), 0, 5)


def test_the_tool_prints_both_ways_of_counting(capsys):
    pytest.importorskip('mmpretrain')
    TOOL['main']([str(CONFIGS / 'mmpretrain' / 'clustr_s_imagenet.py'), '--shape', '224', '224'])
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.startswith('| ')]
    heading, sums = (words[3:-1:2] for words in (lines[0], lines[-1]))
    found = dict(zip(heading, sums, strict=True))
    assert found.pop('linear') == '4.294' and found.pop('convolution') == '0.308'
    assert found == dict(
        attention='0.177', fine='0.688', clustering='2.658', merge='0.003', sum='8.127'
    )
    assert 'attention): 4.778, which leaves out 3.349 of 8.127' in printed
    assert 'parameters: 22.69 M (backbone 22.18, neck 0.00, heads 0.51)' in printed
