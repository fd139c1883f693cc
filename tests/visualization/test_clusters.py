"""Cluster pictures: what they show is what the network does, on photographs of any shape."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import NARROW

from clustr_mm import ClusTR
from clustr_mm.visualization import normalise, read_photo, show_clusters, view_blocks

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'mmpretrain' / 'clustr_t_mini.py'
ARCH = {**NARROW, 'depths': (2, 1, 2, 1)}


def a_photo(height: int, width: int) -> Image.Image:
    """Smooth colours with a bright disc."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 3) ** 2 < (min(height, width) / 4) ** 2
    pixels = np.stack([255 * y / height, 255 * x / width, np.where(disc, 240, 40)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(
    'options',
    [{}, dict(recluster_every=0), dict(cluster_window=8), dict(scales=(1, 2, 4)),
     dict(out_indices=(0,))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize('size', [(64, 96), (65, 70)])
def test_views_are_what_the_network_clusters(options, size):
    torch.manual_seed(0)
    model = ClusTR(ARCH, **options)
    image = torch.randn(1, 3, *size)
    views = view_blocks(model, image)
    assert model.training
    maps = model.eval().cluster_maps(image)
    assert [(v.stage, v.block, v.depth) for v in views] == [
        (1, 1, 2), (1, 2, 2), (2, 1, 1), (3, 1, 2), (3, 2, 2)
    ]  # fmt: skip
    for view in views:
        expected = maps[view.stage - 1][view.block - 1]
        assert view.weights.shape == view.labels[0].shape and (view.weights > 0).all()
        assert len(view.labels) == len(expected)
        for labels, centres, label in zip(view.labels, view.centres, expected, strict=True):
            assert np.array_equal(labels, label[0].numpy())
            # Cluster m's centre lies in cluster m.
            assert np.array_equal(labels[tuple(centres.T)], np.arange(len(centres)))
            assert len(centres) == labels.max() + 1
    # 16 x 24 tokens in windows of 8, or 17 x 18
    windows = {64: 6, 65: 4}[size[0]] if 'cluster_window' in options else 1
    assert max(view.windows for view in views) == windows


def test_what_cannot_be_viewed_leaves_the_model_in_training():
    model = ClusTR(NARROW)
    with pytest.raises(ValueError, match=r'use \(B, 3, height, width\)'):
        view_blocks(model, torch.randn(1, 4, 64, 64))
    assert model.training


def test_a_centre_is_the_token_that_its_cluster_is_nearest_to():
    torch.manual_seed(1)
    model = ClusTR(ARCH).eval()
    image = torch.randn(1, 3, 64, 96)
    tokens = []
    attn = model.stages[0].blocks[1].attn
    handle = attn.register_forward_pre_hook(lambda _, args: tokens.append(args[0][0]))
    view = view_blocks(model, image, stages=[1], blocks=[2])[0]
    handle.remove()
    x, w = tokens[0], view.weights.shape[1]
    for labels, centres in zip(view.labels, view.centres, strict=True):
        middle = x[centres[:, 0] * w + centres[:, 1]]  # (M, C)
        distances = torch.cdist(x.double(), middle.double())  # (N, M)
        own = distances.gather(1, torch.from_numpy(labels.reshape(-1, 1)))
        assert torch.allclose(own.squeeze(1), distances.amin(1), atol=1e-5)


def test_blocks_are_chosen_from_either_end():
    model, image = ClusTR(ARCH), torch.randn(1, 3, 64, 64)
    chosen = [(v.stage, v.block) for v in view_blocks(model, image, blocks=[-1])]
    assert chosen == [(1, 2), (2, 1), (3, 2)]
    chosen = [(v.stage, v.block) for v in view_blocks(model, image, [1, 3], [1])]
    assert chosen == [(1, 1), (3, 1)]
    with pytest.raises(ValueError, match=r'stage 4 has no clusters; use stages of \[1, 2, 3\]'):
        view_blocks(model, image, [4])
    with pytest.raises(ValueError, match=r'blocks are \[7\]'):
        view_blocks(model, image, blocks=[7])


@pytest.mark.parametrize('size', [(64, 96), (96, 40), (33, 33), (24, 1500)])
def test_three_lines_draw_a_sheet(size, tmp_path):
    a_photo(*size).save(tmp_path / 'photo.png')
    sheet = show_clusters(ClusTR(ARCH), tmp_path / 'photo.png', stages=[1, 2])
    pixels = np.asarray(sheet)
    assert sheet.width > 800 and sheet.height > 400
    # Neither blank nor cut: colours inside, paper around.
    assert pixels.std() > 30
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == 255).all()
    one = show_clusters(ClusTR(ARCH), tmp_path / 'photo.png', stages=[1], scales=[1])
    assert one.width < sheet.width and one.height < sheet.height
    with pytest.raises(ValueError, match=r'scale is 3; use 1 \(the coarsest\) to 2'):
        show_clusters(ClusTR(ARCH), tmp_path / 'photo.png', scales=[3])


def test_a_photograph_of_many_bands_is_drawn():
    bands = np.random.default_rng(0).integers(0, 5000, (64, 96, 8)).astype(np.uint16)
    preprocessor = dict(mean=[2500.0], std=[1400.0])
    model = ClusTR(ARCH, in_channels=8)
    assert show_clusters(model, bands, preprocessor=preprocessor).width > 800


def test_only_larger_photographs_are_resized():
    for size, side, expected in (
        ((60, 100), 32, (32, 53)), ((20, 30), 32, (20, 30)), ((60, 100), None, (60, 100))
    ):  # fmt: skip
        assert read_photo(a_photo(*size), side).shape == (*expected, 3)
    bands = np.full((64, 96, 8), 3000, np.uint16)
    small = read_photo(bands, 32)
    assert small.shape == (32, 48, 8) and small.dtype == np.uint16 and (small == 3000).all()


def test_photographs_are_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    a_photo(20, 30).save(tmp_path / 'turned.jpg', exif=exif)
    assert read_photo(tmp_path / 'turned.jpg', None).shape == (30, 20, 3)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    ramp = np.linspace(0, 60000, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / 'deep.png')
    photo = read_photo(tmp_path / 'deep.png', None)
    assert photo.shape == (20, 30, 3) and photo[10].mean() == pytest.approx(134, abs=10)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpose', 'mmpretrain'])
def test_normalised_as_each_library_does(library):
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    pytest.importorskip(library)
    path = next((ROOT / 'configs' / library).glob('*_mini.py'))
    cfg = Config.fromfile(str(path))
    settings = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    photo = a_photo(96, 128)
    bgr = torch.from_numpy(np.asarray(photo)[..., ::-1].copy()).permute(2, 0, 1)
    with DefaultScope.overwrite_default_scope(library):
        preprocessor = MODELS.build(settings)
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ('mean', 'std'))
    expected = (bgr.flip(0).float() - mean) / std
    for each in (preprocessor, settings):
        assert torch.allclose(normalise(np.asarray(photo), each)[0], expected)


@pytest.mark.slow
def test_the_tool_writes_a_sheet_a_photograph(tmp_path):
    (tmp_path / 'photos' / 'more').mkdir(parents=True)
    a_photo(64, 96).save(tmp_path / 'photos' / 'a.jpg')
    a_photo(64, 96).save(tmp_path / 'photos' / 'more' / 'a.png')
    torch.save({'state_dict': {'backbone.' + k: v for k, v in ClusTR('tiny').state_dict().items()}},
               tmp_path / 'ckpt.pth')  # fmt: skip
    (tmp_path / 'broken.jpg').write_bytes(b'no image')

    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / 'tools/analysis/clusters.py', CONFIG, *arguments],
            cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip

    done = run('ckpt.pth', 'photos', 'photos/more/a.png', '--stages', '1')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['clusters/a.png', 'clusters/a_2.png']
    first, second = (Image.open(tmp_path / 'clusters' / name) for name in ('a.png', 'a_2.png'))
    assert first.size == second.size
    failed = run('broken.jpg')
    assert failed.returncode == 1
    assert failed.stderr.startswith('error: broken.jpg is no image that can be read (')
    assert failed.stderr.endswith('; leave it out\n') and failed.stderr.count('\n') == 1


def test_the_hook_writes_to_tensorboard_during_training(tmp_path):
    pytest.importorskip('mmseg')
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from clustr_mm.datasets.mini.mini import MiniData, build
    from clustr_mm.engine import train

    mini = MiniData(layout='ade20k', train=2, val=3, size=(64, 64))
    data = build(tmp_path / 'mini', mini)['ade20k']
    config = tmp_path / 'pictures.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/mmseg/upernet_clustr_pvtb0_mini.py'\n"
        "modules = [*_base_.custom_imports.imports, 'clustr_mm.visualization']\n"
        'custom_imports = dict(imports=modules)\n'
        "custom_hooks = [dict(type='ClusterPictureHook', stages=[1], images=2)]\n"
        "experiment_name = 'cluster_pictures'\n"
        "visualizer = dict(name='cluster_pictures')\n"
    )
    train(
        [str(config), '--data-root', str(data), '--work-dir', str(tmp_path / 'run'), '--device',
         'cpu', '--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=1',
         'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
         'val_dataloader.num_workers=0', 'val_dataloader.batch_size=3',
         'model.data_preprocessor.size=(64,64)']
    )  # fmt: skip
    events = next((tmp_path / 'run').glob('*/vis_data/events*'))
    log = EventAccumulator(str(events)).Reload()
    assert log.Tags()['images'] == ['clusters/0', 'clusters/1']
    picture = log.Images('clusters/0')[0]
    assert picture.step == 1 and picture.width > 800
