"""Export: other runtimes compute what PyTorch does, at sizes that were not traced."""

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from small import NARROW

from clustr_mm import ClusTR, merge_tokens
from clustr_mm.engine import UserError, export
from clustr_mm.engine.export import (
    GRAPHS,
    AdaptivePool,
    differences,
    make_exportable,
    to_onnx,
    to_program,
)
from clustr_mm.models.clustr import ARCHS
from clustr_mm.ops.merging import merge_by_product

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'export.py'))
ARCH = {**NARROW, 'depths': (2, 1, 1, 1)}
TOLERANCE = 1e-4
NAN = float('nan')
SHAPES = [(1, 64, 64), (2, 97, 131), (3, 128, 128)]

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ('onnx', 'onnxruntime', 'onnxscript')),
    reason="the extra 'export' is not installed: pip install onnx onnxruntime onnxscript",
)


def small(**options) -> ClusTR:
    torch.manual_seed(0)
    return ClusTR(ARCH, **options).eval()


def test_merging_by_a_product_is_merging():
    torch.manual_seed(0)
    x, logits = torch.randn(2, 50, 8), 30 * torch.randn(2, 50)
    labels = torch.stack([torch.randperm(50) % 7, torch.randperm(50) % 7])
    expected = merge_tokens(x, labels, 7, logits)
    assert torch.allclose(merge_by_product(x, labels, 7, logits), expected, atol=1e-6)


@pytest.mark.parametrize('dynamic', [True, False])
@pytest.mark.parametrize(
    'options', [{}, dict(recluster_every=0), dict(scales=(1, 2, 4)), dict(crop_padding=True)],
    ids=str,
)  # fmt: skip
def test_the_exportable_form_computes_the_same(options, dynamic):
    model = small(**options)
    images = torch.randn(2, 3, 65, 90)
    with torch.no_grad():
        found = make_exportable(model, dynamic)(images)
        for map_, other in zip(model(images), found, strict=True):
            assert torch.allclose(map_, other, atol=1e-5)


def test_windows_are_for_one_size():
    model = small(cluster_window=8, fine_scope='window')
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = make_exportable(model, dynamic=False)(images)
        for map_, other in zip(model(images), found, strict=True):
            assert torch.allclose(map_, other, atol=1e-5)
    with pytest.raises(UserError, match='cluster_window is 8: windows depend on the size'):
        to_program(model, (64, 96))


@pytest.mark.parametrize('backend', [None, 'traceable'])
def test_the_whole_backbone_compiles_without_a_break(backend):
    from clustr_mm.ops.clustering.native import can_run_native

    if backend is None and can_run_native(torch.empty(1, 1, 1)) is not None:
        pytest.skip('no C++ compiler: the tiled form has control flow')
    model = small(backend=backend)
    images = torch.randn(1, 3, 64, 64)
    torch._dynamo.reset()
    with torch.no_grad():
        explained = torch._dynamo.explain(model)(images)
        assert (explained.graph_count, explained.graph_break_count) == (1, 0)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        for map_, other in zip(model(images), compiled(images), strict=True):
            assert torch.allclose(map_, other, atol=1e-5)


@pytest.fixture(scope='module')
def program():
    return to_program(small(), (64, 96))


def test_a_graph_takes_as_many_channels_as_the_model(tmp_path):
    model, path = small(in_channels=5), str(tmp_path / 'bands.pt2')
    torch.export.save(to_program(model, (64, 96), dynamic=False), path)
    found = differences(make_exportable(model, dynamic=False), path, [(1, 64, 96)])
    assert all(value < TOLERANCE for value in found.values())


class OfOneSize(torch.nn.Module):
    """What no graph for any size can be made of."""

    def forward(self, images):
        return images.reshape(-1, 3, 64, 96)


def test_what_cannot_be_exported_is_said_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match='OfOneSize cannot be exported for any size .*--static'):
        to_program(OfOneSize(), (64, 96))
    monkeypatch.setattr(export, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='ONNX needs onnx, .*; pip install onnx onnxruntime'):
        to_onnx(None, str(tmp_path / 'model.onnx'))
    monkeypatch.setattr(torch.onnx, 'export', lambda model, path: None)
    with pytest.raises(UserError, match='is too old to export; use 2.9 or newer'):
        to_program(OfOneSize(), (64, 96))


@pytest.fixture
def narrow(tmp_path):
    """A config whose backbone is the small one."""
    base = CONFIGS / 'mmpretrain' / 'clustr_t_mini.py'
    backbone = dict(arch={**ARCH, '_delete_': True}, out_indices=(0, 1, 2, 3))
    path = tmp_path / 'narrow.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(backbone={backbone})\n")
    return str(path)


@pytest.mark.parametrize(('batch', 'height', 'width'), SHAPES)
def test_torch_export_serves_any_size_and_batch(program, batch, height, width):
    images, model = torch.randn(batch, 3, height, width), small()
    with torch.no_grad():
        for map_, other in zip(model(images), program.module()(images), strict=True):
            assert torch.allclose(map_, other, atol=1e-5)


@pytest.mark.slow
@needs_onnx
def test_onnx_runtime_computes_what_pytorch_does(program, narrow, tmp_path, monkeypatch):
    import onnx

    monkeypatch.setitem(TOOL['main'].__globals__, 'to_program', lambda *_: program)  # made once
    path = str(tmp_path / 'new' / 'backbone.onnx')
    TOOL['main']([narrow, path, '--backbone', '--shape', '64', '96'])
    assert os.listdir(tmp_path / 'new') == ['backbone.onnx']
    model = onnx.load(path)
    assert [each.version for each in model.opset_import if not each.domain] == [18]
    assert not {node.op_type for node in model.graph.node} & {'Loop', 'If', 'ScatterND'}
    # The default form itself, on noise; on a single colour the exportable one, whose ties are
    # broken alike.
    found = differences(small(), path, SHAPES)
    assert all(value < TOLERANCE for (_, kind), value in found.items() if kind == 'random')
    found = differences(make_exportable(small()), path, SHAPES)
    assert len(found) == 6 and all(value < TOLERANCE for value in found.values())


def model_of(name, **changes):
    """A config's model on the small backbone."""
    library = name.split('/')[0]
    pytest.importorskip(library)
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    # What reads the maps reads as many channels as the small backbone has.
    widths = ARCHS[cfg.model.backbone.arch]['embed_dims']
    channels = dict(zip(widths, ARCH['embed_dims'], strict=True))

    def narrowed(node):
        for key, value in node.items():
            if key == 'in_channels' and isinstance(value, list):
                node[key] = [channels.get(each, each) for each in value]
            elif key == 'in_channels':
                node[key] = channels.get(value, value)
        for each in node.values():
            for part in each if isinstance(each, list) else [each]:
                if isinstance(part, dict):
                    narrowed(part)

    narrowed(cfg.model.get('neck') or {})
    if not cfg.model.get('neck') or library == 'mmpretrain':
        narrowed(dict(head=cfg.model.get('head') or cfg.model.decode_head))
    cfg.model.backbone.arch = ARCH
    cfg.model.auxiliary_head = None
    if library != 'mmseg':
        del cfg.model.auxiliary_head
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(library):
        return MODELS.build(cfg.model).eval()


def graph_of(name, **changes):
    return GRAPHS[name.split('/')[0]](model_of(name, **changes)).eval()


@pytest.mark.parametrize('name', ['semfpn_clustr_t_ade20k', 'upernet_clustr_pvtb0_mini'])
def test_the_graph_of_a_segmentation_model_gives_its_scores(name):
    model = model_of(f'mmseg/{name}')
    images = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(97, 131))] * 2)
        found = GRAPHS['mmseg'](model).eval()(images)
    assert found.shape == (2, model.num_classes, 97, 131)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


SIMCC = 'mmpose/topdown_clustr_s_simcc_wholebody_256x192'
SEVERAL = dict(type='MultiLabelLinearClsHead', in_channels=64, num_classes=10, _delete_=True)


@pytest.mark.parametrize('several', [False, True])
def test_the_graph_of_a_classifier_gives_its_scores(several):
    model = model_of('mmpretrain/clustr_t_mini', **({'head': SEVERAL} if several else {}))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, probabilities = GRAPHS['mmpretrain'](model).eval()(images)
        expected = [sample.pred_score for sample in model.predict(images)]
    torch.testing.assert_close(probabilities, torch.stack(expected))
    turned = logits.sigmoid() if several else logits.softmax(1)
    torch.testing.assert_close(turned, probabilities)


@pytest.mark.parametrize(
    ('name', 'outputs', 'size', 'any_size'),
    [
        ('mmpose/topdown_clustr_t_mini', ('heatmaps',), (192, 144), True),
        (SIMCC, ('simcc_x', 'simcc_y'), (256, 192), False),
        ('mmdet/mask_rcnn_clustr_t_mini', (), None, True),
    ],
)
def test_the_graph_of_another_model_gives_what_its_network_does(name, outputs, size, any_size):
    model = model_of(name)
    graph = GRAPHS[name.split('/')[0]](model).eval()
    assert (graph.output_names, graph.input_size, graph.any_size) == (outputs, size, any_size)
    images = torch.randn(2, 3, *(size or (64, 96)))
    with torch.no_grad():
        expected = model.extract_feat(images)
        if size is not None:
            expected = model.head.forward(expected)
        found = graph(images)
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_what_is_no_graph_is_said_in_one_line():
    pytest.importorskip('mmpretrain')
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpose')
    cases = (
        ('mmpretrain/clustr_t_mini', 'head', 'ImageClassifier gives no classes'),
        ('mmpose/topdown_clustr_t_mini', 'head', 'TopdownPoseEstimator gives no keypoints'),
        ('mmseg/semfpn_clustr_t_ade20k', 'decode_head', 'ModuleList gives no map of class scores'),
    )
    for name, part, said in cases:
        model = model_of(name)
        setattr(model, part, torch.nn.ModuleList() if part == 'decode_head' else None)
        with pytest.raises(UserError, match=f'{said}; export its backbone with --backbone'):
            GRAPHS[name.split('/')[0]](model)


class Unexportable(export.ModelGraph):
    """A model whose way depends on the data."""

    def forward(self, images):
        return self.model(images if images.sum() > 0 else -images)


def test_a_foreign_model_that_cannot_be_exported_is_said_in_one_line():
    with pytest.raises(UserError, match='ClusTR cannot be exported .*; export its backbone with'):
        to_program(Unexportable(small()), (64, 96), dynamic=False)


@needs_onnx
@pytest.mark.long
@pytest.mark.parametrize(
    ('name', 'static'),
    [
        ('mmseg/semfpn_clustr_t_ade20k', False),
        ('mmseg/upernet_clustr_pvtb0_mini', False),
        ('mmseg/upernet_clustr_pvtb0_mini', True),
        ('mmpretrain/clustr_t_mini', False),
        ('mmpose/topdown_clustr_t_mini', False),
        ('mmdet/mask_rcnn_clustr_t_mini', True),
    ],
)
def test_onnx_runtime_computes_whole_models(name, static, tmp_path):
    import onnx

    graph = graph_of(name)
    path = str(tmp_path / 'model.onnx')
    to_onnx(to_program(graph, (97, 131), dynamic=not static), path, graph.output_names)
    named = [each.name for each in onnx.load(path).graph.output]
    assert named == list(graph.output_names) or not graph.output_names
    shapes = [(1, 97, 131), (3, 97, 131)] if static else SHAPES
    found = differences(make_exportable(graph, not static), path, shapes)
    assert len(found) == 2 * len(shapes) and all(value < TOLERANCE for value in found.values())


# Without what the packages of OpenMMLab are called, ours, and PyTorch.
RTMLIB = """
import sys
BLOCKED = 'clustr_mm', 'mmcv', 'mmdet', 'mmengine', 'mmpose', 'mmpretrain', 'mmseg', 'torch'
sys.modules.update(dict.fromkeys(BLOCKED))
import cv2, json, rtmlib
model = rtmlib.RTMPose(sys.argv[1], (192, 256), backend='onnxruntime')
image = cv2.imread(sys.argv[2])[..., ::-1]  # RGB
keypoints, scores = model(image, bboxes=json.loads(sys.argv[3]))
print(json.dumps([keypoints.tolist(), scores.tolist()]))
"""


@pytest.mark.slow
@needs_onnx
@pytest.mark.skipif(find_spec('rtmlib') is None, reason='pip install --no-deps rtmlib')
def test_rtmlib_finds_the_keypoints_that_mmpose_finds(tmp_path):
    import cv2
    from skimage import data

    pytest.importorskip('mmpose')
    from mmpose.apis import inference_topdown

    graph = graph_of(SIMCC, **{'test_cfg.flip_test': False, 'backbone.arch.depths': (1, 1, 1, 1)})
    path = str(tmp_path / 'pose.onnx')
    to_onnx(to_program(graph, (256, 192), dynamic=False), path, graph.output_names)
    found = differences(make_exportable(graph, False), path, [(1, 256, 192), (3, 256, 192)])
    assert all(value < TOLERANCE for (_, kind), value in found.items() if kind == 'random')

    photograph = str(tmp_path / 'photograph.png')
    cv2.imwrite(photograph, data.astronaut()[..., ::-1])
    boxes = [[60, 0, 420, 511], [150, 10, 300, 260]]
    done = subprocess.run(
        [sys.executable, '-c', RTMLIB, path, photograph, json.dumps(boxes)],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': ''}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    keypoints, scores = map(np.array, json.loads(done.stdout.splitlines()[-1]))

    graph.model.cfg = Config.fromfile(str(CONFIGS / f'{SIMCC}.py'))
    with DefaultScope.overwrite_default_scope('mmpose'):
        meta = DATASETS.build({**graph.model.cfg.test_dataloader.dataset, 'lazy_init': True})
        graph.model.dataset_meta = meta.metainfo
        samples = inference_topdown(graph.model, photograph, np.array(boxes, np.float32))
    assert keypoints.shape == (2, 133, 2)
    for one, other, sample in zip(keypoints, scores, samples, strict=True):
        (expected,), (reached,) = (
            sample.pred_instances.keypoints,
            sample.pred_instances.keypoint_scores,
        )
        off = np.abs(one - expected).max(-1)
        # Half a pixel of the crop is one class; untrained, two may be as good as equal.
        assert (off < 0.01).mean() > 0.95, np.sort(off)
        # rtmlib's score is the mean of x's and y's, mmpose's the lower one.
        assert (other > reached - 1e-4).all()


@pytest.mark.parametrize('size', [(1, 1), (2, 5), (7, 7), (13, 6)])
@pytest.mark.parametrize('bins', [1, 2, 6, (3, 2)])
def test_pooling_by_products_is_torchs(size, bins):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AdaptivePool(bins)(x), torch.nn.AdaptiveAvgPool2d(bins)(x))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['mmseg/semfpn_clustr_t_ade20k.py', 'model.txt'], 'then the file to write'),
        (['mmseg/semfpn_clustr_t_ade20k.py', 'a.onnx', 'b.onnx'], 'then the file to write'),
        (['mmpose/topdown_clustr_s_simcc_wholebody_256x192.py', 'm.onnx', '--shape', '64', '96'],
         r'--shape 64 96: RTMCCHead takes 256 x 192 alone'),
        (['mmpretrain/clustr_t_mini.py', 'm.onnx', '--backbone', '--shape', '20', '64'],
         'takes sides from 64 to 2048'),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_line(arguments, message, tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        TOOL['main']([str(CONFIGS / arguments[0]), *arguments[1:]])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tool_writes_what_it_has_compared(narrow, tmp_path, capsys):
    out = tmp_path / 'new' / 'b.pt2'
    arguments = [narrow, str(out), '--backbone', '--shape', '65', '96', '--static']
    TOOL['main'](arguments)
    assert os.listdir(out.parent) == ['b.pt2']
    printed = capsys.readouterr().out
    for batch in (1, 2):
        assert all(
            f'{batch} x 65 x 96, {kind}: differs from' in printed for kind in ('random', 'flat')
        )
    assert re.search(r'1 x 65 x 96, \d+ threads: \d+ ms, PyTorch \d+ ms \(times \d', printed)
    assert f'{out}: 65x96, ' in printed


def test_a_program_of_another_model_is_not_kept(narrow, tmp_path, monkeypatch):
    class Other(torch.nn.Module):
        def forward(self, images):
            sides = enumerate(ARCH['embed_dims'])
            return [
                images.new_ones(images.shape[0], c, 16 >> at, 24 >> at) * images.mean()
                for at, c in sides
            ]

    batch = {0: torch.export.Dim('batch', max=9)}
    images = torch.zeros(2, 3, 64, 96)
    program = torch.export.export(Other(), (images,), dynamic_shapes=(batch,))
    monkeypatch.setitem(TOOL['main'].__globals__, 'to_program', lambda *_: program)
    out = tmp_path / 'new' / 'b.pt2'
    with pytest.raises(UserError, match='the graph differs from PyTorch by'):
        TOOL['main']([narrow, str(out), '--backbone', '--shape', '64', '96', '--static'])
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ('noise', 'flat', 'message'),
    [
        ([1e-6, 2e-4], 0.0, 'by 2.0e-04 on noise'),
        ([1e-6, NAN], 0.0, 'by nan on noise'),
        ([1e-6, 1e-6], NAN, 'nan on a single colour'),
    ],
)
def test_a_model_that_differs_is_not_kept(noise, flat, message, tmp_path, monkeypatch):
    monkeypatch.setitem(
        TOOL['main'].__globals__, 'to_onnx', lambda _, path, names: Path(path).touch()
    )
    monkeypatch.setitem(TOOL['main'].__globals__, 'to_program', lambda *_: None)
    far = {((1, 64 + at, 64), 'random'): value for at, value in enumerate(noise)}
    far[(1, 64, 64), 'flat'] = flat
    monkeypatch.setitem(TOOL['main'].__globals__, 'differences', lambda *_: far)
    with pytest.raises(UserError, match=message):
        config = CONFIGS / 'mmpretrain' / 'clustr_t_mini.py'
        TOOL['main']([str(config), str(tmp_path / 'm.onnx'), '--backbone'])
    assert not list(tmp_path.iterdir())


class Two(torch.nn.Module):
    """The images, and something made of them."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return [images + 0, images * self.factor]


def test_of_large_outputs_the_share_counts(tmp_path):
    path = str(tmp_path / 'two.pt2')
    images = torch.zeros(1, 3, 4, 6)
    torch.export.save(torch.export.export(Two(1e4), (images,)), path)
    found = differences(Two(1.001e4), path, [(1, 4, 6)])
    assert found[(1, 4, 6), 'flat'] == pytest.approx(10 * 0.001 / 1.001, rel=1e-3)


@pytest.mark.parametrize('factor', [2.0, 3.0, NAN])
def test_every_output_is_compared(factor, tmp_path):
    path = str(tmp_path / 'two.pt2')
    images = torch.zeros(1, 3, 4, 6)
    torch.export.save(torch.export.export(Two(2.0), (images,)), path)
    found = differences(Two(factor), path, [(1, 4, 6)])
    assert found.keys() == {((1, 4, 6), 'random'), ((1, 4, 6), 'flat')}
    expected = (factor - 2) * 0.7
    assert found[(1, 4, 6), 'flat'] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_difference_on_a_single_colour_is_told(capsys, monkeypatch):
    monkeypatch.setitem(
        TOOL['check'].__globals__,
        'differences',
        lambda *_: {((1, 64, 64), 'random'): 1e-6, ((1, 64, 64), 'flat'): 2e-3},
    )
    options = TOOL['parse_args'](['config.py', 'm.onnx', '--shape', '64', '64'])
    TOOL['check'](torch.nn.Identity(), 'm.onnx', options)
    assert 'warning: on a single colour it differs by 2.0e-03' in capsys.readouterr().out


@pytest.mark.parametrize('more', [1e-6, 2e-4, NAN])
def test_a_draw_of_noise_in_which_rounding_decides_is_drawn_again(more, capsys, monkeypatch):
    def far(module, path, shapes, draw=0):
        noise = {0: 2e-4, 1: 1e-6, 2: more}[draw]
        return {((1, 64, 64), 'random'): noise, ((1, 64, 64), 'flat'): 0.0}

    monkeypatch.setitem(TOOL['check'].__globals__, 'differences', far)
    options = TOOL['parse_args'](['config.py', 'm.onnx', '--shape', '64', '64'])
    if more == 1e-6:
        TOOL['check'](torch.nn.Identity(), 'm.onnx', options)
    else:
        with pytest.raises(UserError, match='on noise'):
            TOOL['check'](torch.nn.Identity(), 'm.onnx', options)
    assert 'one draw of noise differs by 2.0e-04' in capsys.readouterr().out
