"""What the web page shows and refuses, without a browser."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import NARROW
from torch import nn

from clustr_mm import ClusTR
from clustr_mm.engine import UserError
from clustr_mm.engine.inference import Demo
from clustr_mm.visualization.page import Explorer, import_gradio, read_upload


def explorer(backbone: nn.Module, side: int = 64) -> Explorer:
    model = nn.Module()
    model.backbone = backbone
    return Explorer(Demo('segmentation', SimpleNamespace(model=model.eval()), 0.3, {}), side)


@pytest.fixture(scope='module')
def photo() -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (60, 90, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope='module')
def small() -> Explorer:
    torch.manual_seed(0)
    return explorer(ClusTR(NARROW))


def test_the_clusters_of_a_block_and_scale_are_drawn(small, photo):
    assert small.depths == {1: 1, 2: 2, 3: 3} and small.scales == 2
    picture, caption = small.group(photo, stage=2, block=1, scale=1, side=120)
    assert min(picture.size) >= 120 and picture.width > picture.height
    assert caption == 'Stage 2, block 1 of 2, scale 1: 6 clusters of 8 x 12 tokens'
    finer, caption = small.group(photo, stage=2, block=1, scale=2, side=120)
    assert caption == 'Stage 2, block 1 of 2, scale 2: 24 clusters of 8 x 12 tokens'
    assert not np.array_equal(np.asarray(picture), np.asarray(finer))
    _, caption = small.group(photo, stage=3, block=3, scale=2)
    assert caption.endswith('scale 2: each of the 4 x 6 tokens is a cluster of its own')


@pytest.mark.parametrize(
    ('place', 'message'),
    [((1, 1, 0), 'scale is 0; use 1'), ((1, 1, 3), 'to 2'), ((4, 1, 1), 'stage 4 has no clusters')],
)
def test_what_is_not_there_is_refused(small, photo, place, message):
    with pytest.raises(ValueError, match=message):
        small.group(photo, *place)


def test_a_model_without_clusters_is_refused():
    with pytest.raises(UserError, match='no ClusTR with clusters as its backbone'):
        explorer(nn.Conv2d(3, 3, 1))


def test_an_upload_is_upright_and_not_too_large(tmp_path):
    image, exif = Image.new('RGB', (2000, 1000)), Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by a quarter
    image.save(tmp_path / 'turned.jpg', exif=exif)
    assert read_upload(str(tmp_path / 'turned.jpg')).size == (640, 1280)


def test_what_is_no_photograph_is_refused(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'not what it says')
    with pytest.raises(UserError, match='no image that can be read'):
        read_upload(str(tmp_path / 'broken.jpg'))
    Image.new('1', (10_000, 6_401)).save(tmp_path / 'huge.png')
    with pytest.raises(UserError, match='10000 x 6401 pixels. Give one of at most 64 million'):
        read_upload(str(tmp_path / 'huge.png'))


def test_gradio_is_told_to_report_nothing_before_it_is_imported(monkeypatch):
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'True')
    monkeypatch.setitem(sys.modules, 'gradio', None)  # which makes its import fail
    with pytest.raises(UserError, match=r"pip install 'clustr-mm\[web\]'"):
        import_gradio()
    assert os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'
