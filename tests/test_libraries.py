"""libraries.md: its snippets as they stand, each in its real library."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from clustr_mm import ClusTR

PAGE = (Path(__file__).parents[1] / 'docs' / 'libraries.md').read_text()


def snippet(library: str) -> str:
    """The code below a library's heading."""
    (section,) = re.findall(rf'^## {library}\n(.*?)(?=^## |\Z)', PAGE, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r'```python\n(.*?)```', section, re.DOTALL)
    return code


def sample_of_mmdet():
    from mmdet.structures import DetDataSample

    return DetDataSample(metainfo=dict(img_shape=(64, 64), scale_factor=(1.0, 1.0)))


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpose', 'mmpretrain'])
def test_a_config_that_has_worked_for_years(library: str, tmp_path: Path) -> None:
    """The model is built and runs, backbone, neck and head, on an image."""
    pytest.importorskip(library)
    file = tmp_path / 'plugged.py'
    file.write_text(snippet(library))
    cfg = Config.fromfile(file)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
    assert isinstance(model.backbone, ClusTR) and model.backbone.arch == 'small'
    samples = [sample_of_mmdet()] if library == 'mmdet' else None
    with torch.no_grad():
        out = model(torch.rand(1, 3, 64, 64), samples, mode='tensor')
    if library == 'mmdet':
        ((scores, boxes, masks),) = out
        assert (scores.shape[1], boxes.shape[1], masks.shape[1]) == (81, 4 * 80, 80)
    else:
        classes = dict(mmseg=(150, 16, 16), mmpose=(17, 16, 16), mmpretrain=(1000,))
        assert out.shape == (1, *classes[library])


def test_timm(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip('timm')
    names: dict = {}
    exec(snippet('timm'), names)
    assert names['scores'].shape == (1, 10)
    assert [each.shape[1:] for each in names['maps']] == [(128, 12, 16), (256, 6, 8), (512, 3, 4)]
    assert capsys.readouterr().out == '[128, 256, 512] [8, 16, 32]\n'


def test_segmentation_models_pytorch() -> None:
    pytest.importorskip('segmentation_models_pytorch')
    names: dict = {}
    exec(snippet('segmentation-models-pytorch'), names)
    assert names['scores'].shape == (2, 19, 64, 64)
