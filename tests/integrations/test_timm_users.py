"""Libraries that build their backbones by timm: ours trains in them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip('timm')

import clustr_mm.integrations.timm
from clustr_mm.weights.files import save_checkpoint

NAME = 'clustr_pvt_v2_b0'


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 3 channels and which of three colours each pixel has."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 4, 4), generator=generator)
    labels = F.interpolate(labels.float(), size=64).squeeze(1).long()
    noise = torch.randn(2, 3, 64, 64, generator=generator)
    return F.one_hot(labels, 3).movedim(3, 1) * 2 + 0.1 * noise, labels


def losses(model: nn.Module, steps: int = 6) -> list[float]:
    """The loss before each of a few steps."""
    images, labels = scene()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    seen = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize('kind', ['Unet', 'FPN'])
def test_segmentation_models_pytorch_trains(kind):
    smp = pytest.importorskip('segmentation_models_pytorch')
    torch.manual_seed(0)
    model = getattr(smp, kind)(f'tu-{NAME}', encoder_weights=None, classes=3, drop_path_rate=0.0)
    weights = {key: value for key, value in model.encoder.named_parameters() if value.dim() > 1}
    before = {key: value.detach().clone() for key, value in weights.items()}
    seen = losses(model)
    assert seen[-1] < 0.8 * seen[0]
    assert not [key for key in weights if torch.equal(weights[key], before[key])]


def test_segmentation_models_pytorch_starts_from_weights(tmp_path):
    smp = pytest.importorskip('segmentation_models_pytorch')
    torch.manual_seed(0)
    net = clustr_mm.models.ClusTR('pvt_v2_b0').eval()
    file = tmp_path / 'start.safetensors'
    save_checkpoint({f'backbone.{key}': value for key, value in net.state_dict().items()}, file)
    overlay = dict(file=str(file))
    model = smp.Unet(f'tu-{NAME}', encoder_weights=True, pretrained_cfg_overlay=overlay).eval()
    images, _ = scene()
    maps = model.encoder(images)[2:]  # after the image and an empty map of stride 2
    assert all(torch.equal(a, b) for a, b in zip(maps, net(images), strict=True))


@pytest.mark.parametrize('features_only', [False, True])
def test_mmpretrains_timm_backbone(features_only, tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain')
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    backbone = dict(type='TIMMBackbone', model_name=NAME, drop_path_rate=0.0)
    if features_only:
        backbone |= dict(features_only=True, out_indices=(3,))
    head = dict(type='LinearClsHead', num_classes=2, in_channels=256)
    model = dict(type='ImageClassifier', backbone=backbone, head=head)
    model['neck'] = dict(type='GlobalAveragePooling')
    file = tmp_path / 'config.py'
    file.write_text(
        f"custom_imports = dict(imports=['clustr_mm.integrations.timm'])\nmodel = {model}\n"
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(file).model)
    images, _ = scene()
    samples = [mmpretrain.structures.DataSample().set_gt_label(i) for i in range(2)]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        loss = model(images, samples, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < seen[0]
    assert not [key for key, value in model.named_parameters() if value.grad is None]
