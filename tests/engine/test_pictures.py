"""Images as the config reads them, and the libraries' own drawing of them."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData

from clustr_mm.engine import UserError
from clustr_mm.engine.pictures import ReadableImageHook, image_loader


def config(**loading):
    step = dict(type='LoadImageFromFile', **loading)
    return Config(dict(default_scope='mmseg', test_dataloader=dict(dataset=dict(pipeline=[step]))))


@pytest.fixture
def bands(tmp_path):
    """An image of eight bands of 16 bits, brighter from left to right."""
    tifffile = pytest.importorskip('tifffile')
    path = str(tmp_path / 'bands.tif')
    ramp = np.linspace(1000, 9000, 48).reshape(1, 48, 1)
    pixels = np.broadcast_to(ramp, (32, 48, 8)).astype(np.uint16)
    tifffile.imwrite(path, pixels, planarconfig='contig', photometric='minisblack')
    return path


def test_images_are_read_by_the_configs_own_step(bands, tmp_path):
    pytest.importorskip('mmseg')
    tiff = dict(imdecode_backend='tifffile', color_type='unchanged')
    assert image_loader(config(**tiff))(bands).shape == (32, 48, 8)
    turned = cv2.imread(bands, cv2.IMREAD_UNCHANGED)
    assert turned is None or turned.shape != (32, 48, 3), 'OpenCV alone does not'
    for name in ('empty.jpg', 'broken.jpg'):
        (tmp_path / name).write_bytes(b'' if name == 'empty.jpg' else b'not what it says')
        with pytest.raises(UserError, match=rf'{name} is no image that can be read \(.*leave it'):
            image_loader(Config())(str(tmp_path / name))


def test_mmsegs_own_hook_draws_many_bands(bands, tmp_path):
    hooks = pytest.importorskip('mmseg.engine.hooks')
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    visualizer = SegLocalVisualizer.get_instance(
        'bands', vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path / 'show'),
        alpha=0.2,
    )  # fmt: skip
    visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[[200, 0, 0], [0, 200, 0]])
    theirs = hooks.SegVisualizationHook(draw=True)
    theirs._visualizer = visualizer
    cfg = config(imdecode_backend='tifffile', color_type='unchanged')
    runner = SimpleNamespace(cfg=cfg, hooks=[theirs])
    sample = SegDataSample(metainfo=dict(img_path=bands))
    sample.pred_sem_seg = PixelData(data=torch.zeros(1, 32, 48, dtype=torch.int64))
    ours = ReadableImageHook()
    ours.before_run(runner)
    batch = dict(data_samples=[sample])
    for hook in (ours, theirs):
        hook.after_test_iter(runner, 0, batch, [sample])
    (picture,) = (tmp_path / 'show').rglob('*.png')
    drawn = cv2.imread(str(picture))
    assert drawn.shape == (32, 48, 3) and drawn[:, -5:].mean() > drawn[:, :5].mean() + 100
    ours.after_run(runner)


@pytest.mark.parametrize(('draw', 'loading'), [(False, 'tifffile'), (True, 'cv2')])
def test_nothing_is_copied_without_need(draw, loading):
    hook = ReadableImageHook()
    runner = SimpleNamespace(
        cfg=config(imdecode_backend=loading), hooks=[SimpleNamespace(draw=draw)]
    )
    hook.before_run(runner)
    assert hook.load is None
