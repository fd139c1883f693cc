"""transformers, in a folder of its own (requirements/transformers.txt says why)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('timm')

ROOT = Path(__file__).parents[2]

TRAINED = """
import torch
from transformers import (
    Mask2FormerConfig, Mask2FormerForUniversalSegmentation, TimmBackboneConfig,
    UperNetConfig, UperNetForSemanticSegmentation,
)
import clustr_mm.integrations.timm

def backbone():
    return TimmBackboneConfig(backbone='clustr_pvt_v2_b0', out_indices=[0, 1, 2, 3])

torch.manual_seed(0)
images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
upernet = UperNetForSemanticSegmentation(UperNetConfig(
    backbone_config=backbone(), hidden_size=32, auxiliary_in_channels=160,
    auxiliary_channels=32, num_labels=5,
))
mask2former = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
    backbone_config=backbone(), feature_size=32, mask_feature_size=32, hidden_dim=32,
    encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=1, decoder_layers=2,
    num_attention_heads=4, num_queries=5, num_labels=5,
))
masks = torch.stack([labels == i for i in range(5)], 1).float()
given = {
    upernet: dict(labels=labels),
    mask2former: dict(mask_labels=list(masks), class_labels=[torch.arange(5)] * 2),
}
for model, targets in given.items():
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        loss = model(pixel_values=images, **targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert min(seen[1:]) < seen[0], seen
    model.eval().save_pretrained('saved')
    again = type(model).from_pretrained('saved').eval()
    with torch.no_grad():
        outs = [each(pixel_values=images) for each in (model, again)]
    for key in ('logits', 'masks_queries_logits', 'class_queries_logits'):
        if key in outs[0]:
            assert torch.equal(outs[0][key], outs[1][key]), key
    print(type(model).__name__, 'trained, saved and loaded')
"""


@pytest.fixture(scope='module')
def env(tmp_path_factory) -> dict[str, str]:
    """The environment's variables with transformers on the path, without OpenMMLab's packages."""
    site = tmp_path_factory.mktemp('transformers')
    pins = ROOT / 'requirements' / 'transformers.txt'
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile']
    done = subprocess.run(
        [*pip, '--target', str(site), '-r', str(pins)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (site / 'sitecustomize.py').write_text(
        'import sys\n'
        "for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpose', 'mmpretrain'):\n"
        '    sys.modules[name] = None\n'
    )
    return {**os.environ, 'PYTHONPATH': f'{site}{os.pathsep}{ROOT}', 'OMP_NUM_THREADS': '1'}


def run(code: str, env: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_upernet_and_mask2former_train_and_are_saved_and_loaded(env, tmp_path):
    said = run(TRAINED, env, tmp_path)
    assert said.count('trained, saved and loaded') == 2


@pytest.mark.long
def test_the_pages_snippet(env, tmp_path):
    page = (ROOT / 'docs' / 'libraries.md').read_text()
    (code,) = re.findall(r'^## transformers\n+```python\n(.*?)```', page, re.DOTALL | re.MULTILINE)
    assert run(code + 'print(*scores.shape)', env, tmp_path).split() == ['2', '19', '64', '64']
