"""Detection, pose and classification leaves: each is its recipe, and learns a small step.

(Those of small data sets are their own recipes: what they have to show is a score.)
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from recipes import assert_decay_spares, is_head, is_small

from clustr_mm.models import ARCHS

FOLDER = Path(__file__).resolve().parents[1] / 'configs'
CHANNELS = {arch: list(facts['embed_dims']) for arch, facts in ARCHS.items()}


def leaves(library):
    paths = [path for path in sorted((FOLDER / library).glob('*.py')) if not is_head(path)]
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


def build(path):
    cfg = Config.fromfile(str(path))
    init_default_scope(cfg.default_scope)
    # As mmpretrain's runner does: the preprocessor stands beside its model.
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if cfg.model.type == 'MaskRCNN':
        cfg.model.train_cfg.rcnn.sampler.num = 32  # in place of 512 boxes, which take the time
    return cfg, MODELS.build(cfg.model)


def assert_learns(model, losses):
    sum(
        v.sum() if isinstance(v, torch.Tensor) else sum(i.sum() for i in v)
        for k, v in losses.items()
        if 'loss' in k
    ).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def assert_is_mask_rcnn_recipe(cfg, variant, schedule):
    assert cfg.model.backbone.drop_path_rate == dict(t=0.1, s=0.2, b=0.3, pvtb2=0.2)[variant]
    assert cfg.model.roi_head.bbox_head.num_classes == 80
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    epochs, steps = {'1x': (12, [8, 11]), '3x': (36, [27, 33])}[schedule]
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[1].milestones == steps and cfg.param_scheduler[0].end == 500
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16


@leaves('mmdet')
def test_mask_rcnn(path):
    pytest.importorskip('mmcv.ops')
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    cfg, model = build(path)
    classes = cfg.model.roi_head.bbox_head.num_classes
    assert cfg.model.neck.in_channels == CHANNELS[cfg.model.backbone.arch]
    assert cfg.model.neck.out_channels == cfg.model.rpn_head.in_channels
    assert cfg.model.roi_head.mask_head.num_classes == classes
    assert_decay_spares(cfg, model)
    if is_small(path):
        assert classes == len(cfg.train_dataloader.dataset.metainfo.classes)
    else:
        assert_is_mask_rcnn_recipe(cfg, *path.stem.split('_')[3::2])
    shorter = path.with_name(path.name.replace('_3x', '_1x'))
    if shorter != path:
        assert Config.fromfile(str(path)).model == Config.fromfile(str(shorter)).model
        return  # so it learns as that one does

    samples = []
    for height, width in ((96, 128), (128, 80)):
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[0, 8:40, 8:60] = 1
        masks[1, 30:90, 20:70] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), batch_input_shape=(128, 128), pad_shape=(128, 128)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8, 60, 40], [20, 30, 70, 90]]),
            labels=torch.tensor([0, classes - 1]),
            masks=BitmapMasks(masks.numpy(), height, width).pad((128, 128)),
        )
        samples.append(sample)
    images = torch.zeros(2, 3, 128, 128)
    images[0, :, :96, :128] = torch.randn(3, 96, 128)
    images[1, :, :128, :80] = torch.randn(3, 128, 80)
    assert_learns(model, model.loss(images, samples))


def assert_is_pose_recipe(cfg):
    arch = cfg.model.backbone.arch
    assert cfg.model.backbone.drop_path_rate == dict(base=0.3).get(arch, 0.1)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 5e-4, 0.01)
    assert cfg.train_cfg.max_epochs == 210
    assert cfg.param_scheduler[1].milestones == [170, 200] and cfg.param_scheduler[0].end == 500
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 512
    assert cfg.val_dataloader.dataset.bbox_file.endswith('detections_AP_H_56_person.json')
    if cfg.codec.type == 'MSRAHeatmap':
        assert cfg.codec.sigma == {256: 2, 384: 3}[cfg.codec.input_size[1]]


@leaves('mmpose')
def test_whole_body_pose(path):
    pytest.importorskip('mmpose.models')
    from mmengine.structures import InstanceData, PixelData
    from mmpose.structures import PoseDataSample

    cfg, model = build(path)
    width, height = cfg.codec['input_size']
    keypoints = 14 if path.stem.endswith('_lsp') else 133
    assert cfg.model.head.out_channels == keypoints and cfg.model.test_cfg.flip_test
    assert cfg.model.head.decoder.input_size == cfg.codec['input_size']
    assert_decay_spares(cfg, model)
    if is_small(path):
        assert cfg.val_dataloader.dataset.get('bbox_file') is None
    else:
        assert f'{height}x{width}' in path.stem
        assert_is_pose_recipe(cfg)

    sample = PoseDataSample(metainfo=dict(input_size=(width, height)))
    sample.gt_instance_labels = InstanceData(keypoint_weights=torch.ones(1, keypoints))
    if 'simcc' in path.stem:
        assert cfg.model.head.in_channels == 512
        sample.gt_instance_labels.keypoint_x_labels = torch.rand(1, keypoints, 2 * width)
        sample.gt_instance_labels.keypoint_y_labels = torch.rand(1, keypoints, 2 * height)
    else:
        assert cfg.model.neck.necks[0].in_channels == CHANNELS[cfg.model.backbone.arch]
        assert cfg.codec['heatmap_size'] == (width // 4, height // 4)
        sample.gt_fields = PixelData(heatmaps=torch.rand(keypoints, height // 4, width // 4))
    images = torch.randn(2, 3, height, width)
    assert_learns(model, model.loss(images, [sample, sample.clone()]))


def assert_is_imagenet_recipe(cfg):
    arch = cfg.model.backbone.arch
    assert cfg.model.backbone.drop_path_rate == dict(base=0.3).get(arch, 0.1)
    assert (cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm') == dict(base=1.0).get(arch)
    optimizer = cfg.optim_wrapper.optimizer
    # From ImageNet weights a tenth of the epochs at a tenth of the rate.
    epochs, rate, warm = (30, 1e-4, 1) if arch == 'pvt_v2_b2' else (300, 1e-3, 5)
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', rate, 0.05)
    assert cfg.train_cfg.max_epochs == epochs
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.eta_min, cosine.end) == (warm, rate / 100, epochs)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.train_dataloader.sampler.type == 'RepeatAugSampler'


@leaves('mmpretrain')
def test_imagenet_classifier(path):
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.structures import DataSample

    cfg, model = build(path)
    if 'distilled' in path.stem:
        assert tuple(cfg.model.backbone.out_indices) == (0, 1, 2, 3)
        return  # it learns in tests/integrations/test_distillation.py, from a teacher
    classes = cfg.model.head.num_classes
    assert_decay_spares(cfg, model, biases=True)
    if is_small(path):
        assert classes in (10, 20)
    else:
        assert_is_imagenet_recipe(cfg)
        parameters = dict(tiny=11_682_417, small=22_690_941, base=40_246_210, pvt_v2_b2=22_454_709)
        total = sum(p.numel() for p in model.parameters())
        assert total == parameters[cfg.model.backbone.arch]

    samples = [DataSample().set_gt_label(label) for label in (3, classes - 1)]
    # Mixed labels are soft: the loss sees scores, not classes.
    for sample in samples:
        sample.set_gt_score(torch.nn.functional.one_hot(sample.gt_label[0], classes).float())
    assert_learns(model, model.loss(torch.randn(2, 3, 64, 64), samples))
