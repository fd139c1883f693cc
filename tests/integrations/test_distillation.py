"""A ClusTR that learns from its PVTv2 teacher, on a CPU, with labels and without."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from pvt import HALF, of_mmdet, original, scenes

from clustr_mm.datasets.mini.scenes import make_scene
from clustr_mm.engine.cli import train
from clustr_mm.weights import from_pvt_v2
from clustr_mm.weights.files import CheckpointError, save_checkpoint

ROOT = Path(__file__).parents[2]
LEAF = ROOT / 'configs' / 'mmpretrain' / 'clustr_pvtb2_distilled_imagenet.py'

pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A teacher of half B0's width with 10 classes, and what was converted from it."""
    folder = tmp_path_factory.mktemp('teacher')
    weights = original(of_mmdet(width=16).state_dict())
    torch.save(weights, folder / 'teacher.pth')
    save_checkpoint(from_pvt_v2(weights, HALF).state_dict, folder / 'student.safetensors')
    return folder


def settings(folder: Path, **model):
    small = dict(
        teacher=str(folder / 'teacher.pth'),
        teacher_arch=HALF,
        backbone=dict(arch=dict(HALF, _delete_=True), drop_path_rate=0.0),
        head=dict(in_channels=128, num_classes=10),
    )
    cfg = Config.fromfile(str(LEAF))
    cfg.merge_from_dict(dict(model=small))
    cfg.merge_from_dict(dict(model=model))
    return cfg


def build(cfg):
    from mmpretrain.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model)


def test_it_learns_maps_labels_and_logits(teacher):
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    model = build(settings(teacher))
    weights = from_pvt_v2(torch.load(teacher / 'teacher.pth'), HALF).state_dict
    model.init_weights()
    model.load_state_dict(weights)
    assert not [key for key in model.state_dict() if 'teacher' in key or '_networks' in key]
    images = scenes(4, 64)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    for sample in samples:
        sample.set_gt_score(torch.nn.functional.one_hot(sample.gt_label[0], 10).float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    seen = []
    for _ in range(8):
        losses = model.loss(images, samples)
        seen.append({key: value.item() for key, value in losses.items()})
        optimizer.zero_grad()
        # These labels are not this teacher's: the two pull apart.
        sum(value for key, value in losses.items() if key != 'loss').backward()
        optimizer.step()
    assert set(seen[0]) == {'loss', 'loss_logits', *(f'loss_map{i}' for i in range(1, 5))}
    for key in seen[0]:
        assert key == 'loss' or seen[-1][key] < seen[0][key], key
    # A student that is its teacher has nothing to learn from the maps.
    model.backbone = model._networks[0]
    assert all(model.loss(images, samples)[f'loss_map{i}'] < 1e-10 for i in range(1, 5))


def test_the_lines_of_the_docs_train_on_photographs_without_labels(teacher, tmp_path, monkeypatch):
    text = (ROOT / 'docs' / 'pretrained.md').read_text()
    lines = re.findall(r'```python\n(.*?)```', text, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/photographs/trip').mkdir(parents=True)
    for i in range(4):
        image = Image.fromarray(make_scene(0, 'train', i, (96, 96)).image)
        image.save(tmp_path / f'data/photographs/trip/{i}.jpg')
    (tmp_path / 'mine.py').write_text(lines.replace("'../mmpretrain/", f"'{LEAF.parent}/"))
    config = tmp_path / 'small.py'
    model = dict(
        teacher=str(teacher / 'teacher.pth'),
        teacher_arch=HALF,
        backbone=dict(arch=dict(HALF, _delete_=True)),
    )
    config.write_text(f"_base_ = './mine.py'\nmodel = {model}\n")
    options = [
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_dataloader.dataset.pipeline.1.scale=64',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
    ]
    runner = train(
        [str(config), '--init-from', str(teacher / 'student.safetensors'), '--device', 'cpu',
         '--work-dir', str(tmp_path / 'work'), '--cfg-options', *options]
    )  # fmt: skip
    assert runner.iter == 2
    hub = runner.message_hub.log_scalars
    assert {key for key in hub if 'loss' in key} == {
        'train/loss', *(f'train/loss_map{i}' for i in range(1, 5))
    }  # fmt: skip
    saved = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)['state_dict']
    assert all(key.startswith('backbone.') for key in saved)


def test_a_teacher_that_does_not_fit_says_why(teacher, tmp_path):
    with pytest.raises(ValueError, match='has a head of 10 classes and the student one of 20; set'):
        build(settings(teacher, head=dict(num_classes=20))).init_weights()
    build(settings(teacher, head=dict(num_classes=20), logit_weight=0)).init_weights()
    with pytest.raises(ValueError, match=r'returns stages \(3,\)'):
        build(settings(teacher, backbone=dict(out_indices=(3,)))).init_weights()
    with pytest.raises(CheckpointError, match='does not exist'):
        build(settings(teacher, teacher=str(tmp_path / 'none.pth'))).init_weights()
