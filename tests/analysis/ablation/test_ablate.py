"""The sweep over settings as a command line: its table, its file, its mistakes."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clustr_mm import ClusTR
from clustr_mm.analysis.records import device_name
from clustr_mm.engine.errors import UserError

pytest.importorskip('mmcv')

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / 'configs'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'analysis' / 'ablate.py'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two pictures, one upright and one lying, and a file that is none."""
    folder = tmp_path_factory.mktemp('images')
    pixels = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'a.png')
    Image.fromarray(pixels.transpose(1, 0, 2)).save(folder / 'b.jpg')
    (folder / 'notes.txt').write_text('no picture')
    return folder


def test_table_and_file(folder, tmp_path, capsys):
    torch.manual_seed(0)
    checkpoint = tmp_path / 'weights.pth'
    state = ClusTR(arch='tiny').state_dict()
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()}}, checkpoint)
    results = tmp_path / 'results'
    TOOL['main'](
        [str(CONFIGS / 'mmdet' / 'mask_rcnn_clustr_t_coco_1x.py'), str(checkpoint)]
        + ['--images', str(folder), '--size', '64', '96', '--out', str(results)]
        + ['--settings', 'cluster_window=8', 'grouping=dense']
    )
    out, progress = capsys.readouterr()
    said, costs, clusters = out.split('\n\n')
    facts = said.strip()
    heading, _, *lines = costs.splitlines()
    assert 'images 2' in facts and 'size 64x96' in facts and f'torch {torch.__version__}' in facts
    assert [line.split()[1] for line in lines] == ['exact', 'cluster_window=8', 'grouping=dense']
    assert heading.count('attention') == 3 and heading.count('map') == 4
    assert len({len(line) for line in (heading, *lines)}) == 1
    assert '1 of 2: a.png, 96 x 64' in progress and '2 of 2: b.jpg, 64 x 96' in progress

    assert [line.split()[1] for line in clusters.splitlines()[2:]] == [
        'exact', 'cluster_window=8', 'grouping=dense',
    ]  # fmt: skip
    assert clusters.count('extent') == 3

    assert sorted(path.name for path in results.iterdir()) == ['table.csv', 'table.md']
    assert (results / 'table.md').read_text() == out
    table = (results / 'table.csv').read_text()
    exact, window, dense = csv.DictReader(table.splitlines())
    assert exact['checkpoint'] == str(checkpoint) and exact['command'].startswith('python ')
    assert exact['device'] == device_name(torch.device('cpu'))
    assert exact['config'] == 'mask_rcnn_clustr_t_coco_1x.py'
    assert float(exact['attention1_mean']) == float(exact['map4']) == 0
    assert float(window['attention1_mean']) > 0 and float(window['map4']) > 0
    assert float(window['attention3_mean']) <= float(window['attention3_worst'])
    assert 0 < float(exact['gmac']) and float(dense['single1_scale2']) == 1
    assert float(dense['to_dense2_worst']) == 0 < float(exact['to_dense2_worst'])


@pytest.mark.parametrize(
    'name', ['mmseg/semfpn_clustr_t_ade20k.py', 'mmpretrain/clustr_t_imagenet.py']
)
def test_configs_of_other_libraries_are_understood(folder, name, capsys):
    config = str(CONFIGS / name)
    options = ['--images', str(folder / 'a.png'), '--size', '32', '48', '--settings', 'exact']
    TOOL['main']([config, *options])
    assert 'random weights (seed 0)' in capsys.readouterr().out


def test_images_are_cut_from_the_middle(folder):
    preprocessor = dict(mean=[0.0] * 3, std=[1.0] * 3)
    whole = TOOL['load_image'](folder / 'a.png', (60, 40), preprocessor)
    cut = TOOL['load_image'](folder / 'a.png', (40, 40), preprocessor, crop=True)
    assert torch.equal(cut, whole[..., 10:50, :])
    assert TOOL['load_image'](folder / 'b.jpg', (97, 63), preprocessor, True).shape[2:] == (97, 63)


def test_counts_below_one_are_refused():
    with pytest.raises(UserError, match='--rounds is 0; use at least 1'):
        TOOL['main'](['config.py', '--images', 'a.png', '--rounds', '0'])


def test_pixels_are_the_pipelines(folder):
    """As mmdet's own loading, resizing and preprocessing."""
    pytest.importorskip('mmdet')
    from mmdet.datasets.transforms import PackDetInputs, Resize
    from mmdet.models import DetDataPreprocessor
    from mmengine.config import Config

    cfg = Config.fromfile(str(CONFIGS / 'mmdet' / 'mask_rcnn_clustr_t_coco_1x.py'))
    preprocessor = dict(cfg.model.data_preprocessor)
    image = TOOL['load_image'](folder / 'b.jpg', (64, 90), preprocessor)

    from mmcv.transforms import LoadImageFromFile

    results = LoadImageFromFile()(dict(img_path=str(folder / 'b.jpg')))
    results = Resize(scale=(90, 64), keep_ratio=True)(results)
    packed = PackDetInputs(meta_keys=('img_shape',))(results)
    preprocessor.pop('type')
    preprocessor['pad_size_divisor'] = 1
    data = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    expected = DetDataPreprocessor(**preprocessor)(data)['inputs']
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize(
    ('config', 'images', 'message'),
    [
        ('mmdet/mask_rcnn_clustr_t_coco_1x.py', 'nothing', 'no such image'),
        ('mmdet/mask_rcnn_clustr_t_coco_1x.py', 'notes.txt', 'not an image'),
        ('mmdet/mask_rcnn_clustr_t_coco_1x.py', 'empty', 'a folder without any'),
        ('mmdet/mask_rcnn_clustr_x_coco_1x.py', 'a.png', 'does not exist'),
        ('_base_/datasets/ade20k.py', 'a.png', 'no model with the backbone ClusTR'),
    ],
)
def test_mistakes_are_named(folder, config, images, message):
    (folder / 'empty').mkdir(exist_ok=True)
    with pytest.raises((UserError, ValueError), match=message):
        TOOL['main'](
            [str(CONFIGS / config), '--images', str(folder / images), '--size', '32', '48']
        )
