"""Export: other runtimes compute what PyTorch does, at sizes that were not traced."""

import os
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small import NARROW

from clustr_mm import ClusTR, merge_tokens
from clustr_mm.engine import UserError, export
from clustr_mm.engine.export import (
    AdaptivePool,
    SegmentorGraph,
    differences,
    make_exportable,
    to_onnx,
    to_program,
)
from clustr_mm.ops.merging import merge_by_product

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'export.py'))
ARCH = {**NARROW, 'depths': (2, 1, 1, 1)}
TOLERANCE = 1e-4
NAN = float('nan')
SIZES = [(64, 64), (97, 131), (128, 128)]

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
    found = differences(make_exportable(model, dynamic=False), path, [(64, 96)])
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


@pytest.mark.parametrize('size', SIZES)
def test_torch_export_serves_any_size_and_batch(program, size):
    images, model = torch.randn(3, 3, *size), small()
    with torch.no_grad():
        for map_, other in zip(model(images), program.module()(images), strict=True):
            assert torch.allclose(map_, other, atol=1e-5)


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
    found = differences(small(), path, SIZES)
    assert all(value < TOLERANCE for (_, kind), value in found.items() if kind == 'random')
    found = differences(make_exportable(small()), path, SIZES)
    assert len(found) == 6 and all(value < TOLERANCE for value in found.values())


def segmentor(name):
    """A config's segmentation model on the small backbone."""
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(str(CONFIGS / 'mmseg' / f'{name}.py'))
    cfg.model.backbone.arch = ARCH
    for part in ('neck', 'decode_head'):
        if isinstance((cfg.model.get(part) or {}).get('in_channels'), list) and (
            part == 'neck' or 'upernet' in name
        ):
            cfg.model[part].in_channels = list(ARCH['embed_dims'])
    cfg.model.auxiliary_head = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg.model).eval()


@pytest.mark.parametrize('name', ['semfpn_clustr_t_ade20k', 'upernet_clustr_t_mini'])
def test_the_graph_of_a_segmentation_model_gives_its_scores(name):
    model = segmentor(name)
    images = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(97, 131))] * 2)
        found = SegmentorGraph(model).eval()(images)
    assert found.shape == (2, model.num_classes, 97, 131)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@needs_onnx
@pytest.mark.long
@pytest.mark.parametrize(
    ('name', 'static'),
    [
        ('semfpn_clustr_t_ade20k', False),
        ('upernet_clustr_t_mini', False),
        ('upernet_clustr_t_mini', True),
    ],
)
def test_segmentation_models(name, static, tmp_path):
    graph = SegmentorGraph(segmentor(name)).eval()
    path = str(tmp_path / 'model.onnx')
    to_onnx(to_program(graph, (97, 131), dynamic=not static), path)
    sizes = [(97, 131)] if static else SIZES
    found = differences(make_exportable(graph, not static), path, sizes)
    assert len(found) == 2 * len(sizes) and all(value < TOLERANCE for value in found.values())


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
        (['mmdet/mask_rcnn_clustr_t_mini.py', 'm.onnx'], 'exported with --backbone'),
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


def test_the_tool_writes_what_it_has_compared(narrow, tmp_path, capsys):
    out = tmp_path / 'new' / 'b.pt2'
    arguments = [narrow, str(out), '--backbone', '--shape', '65', '96', '--static']
    TOOL['main'](arguments)
    assert os.listdir(out.parent) == ['b.pt2']
    printed = capsys.readouterr().out
    assert all(f'65 x 96, {kind}: differs from' in printed for kind in ('random', 'flat'))


def test_a_program_of_another_model_is_not_kept(narrow, tmp_path, monkeypatch):
    class Other(torch.nn.Module):
        def forward(self, images):
            sides = enumerate(ARCH['embed_dims'])
            return [images.new_ones(1, c, 16 >> at, 24 >> at) * images.mean() for at, c in sides]

    program = torch.export.export(Other(), (torch.zeros(1, 3, 64, 96),))
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
    monkeypatch.setitem(TOOL['main'].__globals__, 'to_onnx', lambda _, path: Path(path).touch())
    monkeypatch.setitem(TOOL['main'].__globals__, 'to_program', lambda *_: None)
    far = {((64 + at, 64), 'random'): value for at, value in enumerate(noise)}
    far[(64, 64), 'flat'] = flat
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


@pytest.mark.parametrize('factor', [2.0, 3.0, NAN])
def test_every_output_is_compared(factor, tmp_path):
    path = str(tmp_path / 'two.pt2')
    images = torch.zeros(1, 3, 4, 6)
    torch.export.save(torch.export.export(Two(2.0), (images,)), path)
    found = differences(Two(factor), path, [(4, 6)])
    assert found.keys() == {((4, 6), 'random'), ((4, 6), 'flat')}
    expected = (factor - 2) * 0.7
    assert found[(4, 6), 'flat'] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_difference_on_a_single_colour_is_told(capsys, monkeypatch):
    monkeypatch.setitem(
        TOOL['check'].__globals__,
        'differences',
        lambda *_: {((64, 64), 'random'): 1e-6, ((64, 64), 'flat'): 2e-3},
    )
    options = TOOL['parse_args'](['config.py', 'm.onnx'])
    TOOL['check'](torch.nn.Identity(), 'm.onnx', options)
    assert 'warning: on a single colour it differs by 2.0e-03' in capsys.readouterr().out
