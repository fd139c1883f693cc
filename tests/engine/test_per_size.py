"""The same score at any evaluation batch: photographs of several sizes, by real runs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from small import NARROW

from clustr_mm.engine.per_size import parts_of_one_size

ROOT = Path(__file__).resolve().parents[2]
ARCH = {**NARROW, 'depths': (1, 1, 1, 1)}
LOOPS = dict(
    val_cfg=dict(type='clustr_mm.engine.per_size.PerSizeValLoop'),
    test_cfg=dict(type='clustr_mm.engine.per_size.PerSizeTestLoop'),
)
PHOTOGRAPHS = ('astronaut', 'coffee', 'chelsea', 'coffee', 'astronaut')  # 3 sizes


def test_a_batch_is_cut_where_the_size_changes():
    a, b = torch.zeros(3, 4, 6), torch.zeros(3, 6, 4)
    batch = dict(inputs=[a, a, b, a], data_samples=list('wxyz'))
    parts = list(parts_of_one_size(batch))
    assert [part['data_samples'] for part in parts] == [['w', 'x'], ['y'], ['z']]
    assert [len(part['inputs']) for part in parts] == [2, 1, 1]
    stacked = dict(inputs=torch.zeros(2, 3, 4, 6), data_samples=[1, 2])
    assert list(parts_of_one_size(stacked)) == [stacked]


def test_augmentations_of_a_batch_are_cut_together():
    a, b = torch.zeros(3, 4, 6), torch.zeros(3, 6, 4)
    batch = dict(inputs=[[a, b, b], [a, b, b]], data_samples=[list('xyz'), list('xyz')])
    parts = list(parts_of_one_size(batch))
    assert [part['data_samples'] for part in parts] == [[['x'], ['x']], [['y', 'z'], ['y', 'z']]]
    assert [[len(view) for view in part['inputs']] for part in parts] == [[1, 1], [2, 2]]


def keypoints(box):
    """All of COCO-WholeBody's, anywhere in a box."""
    generator = np.random.default_rng(0)
    found = {}
    for name, count in dict(
        keypoints=17, foot_kpts=6, face_kpts=68, lefthand_kpts=21, righthand_kpts=21
    ).items():
        places = box[:2] + generator.random((count, 2)) * box[2:]
        found[name] = np.column_stack([places, np.full(count, 2)]).ravel().tolist()
        part = name.removesuffix('_kpts')
        found[f'{part}_box'], found[f'{part}_valid'] = box, True
    return {**found, 'num_keypoints': 17}


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Photographs of three sizes, with labels of brightness and boxes in COCO's layout."""
    from skimage import data

    root = tmp_path_factory.mktemp('photographs')
    images, annotations = [], []
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    for index, name in enumerate(PHOTOGRAPHS):
        image = cv2.resize(getattr(data, name)()[..., ::-1], None, fx=0.25, fy=0.25)
        image = image[:, :: -1 if index > 2 else 1]
        height, width = image.shape[:2]
        cv2.imwrite(str(root / 'images' / f'{index}.png'), image)
        cv2.imwrite(str(root / 'labels' / f'{index}.png'), image.mean(-1).astype(np.uint8) // 64)
        images.append(dict(id=index, file_name=f'{index}.png', height=height, width=width))
        box = [width // 4, height // 4, width // 2, height // 2]
        annotations.append(
            dict(
                id=index + 1, image_id=index, category_id=1, bbox=box, area=box[2] * box[3],
                iscrowd=0, segmentation=[[10, 10, 40, 10, 40, 40]],
                **keypoints(box),
            )
        )  # fmt: skip
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])
    (root / 'coco.json').write_text(json.dumps(content))
    return root


def segmentation(root):
    cfg = Config.fromfile(str(ROOT / 'configs/mmseg/semfpn_clustr_t_ade20k.py'))
    cfg.model.decode_head.num_classes = 4
    cfg.test_dataloader.dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        metainfo=dict(classes=('a', 'b', 'c', 'd'), palette=[[i, i, i] for i in range(4)]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    return cfg


def detection(root):
    cfg = Config.fromfile(str(ROOT / 'configs/mmdet/mask_rcnn_clustr_t_mini.py'))
    cfg.merge_from_dict(
        {
            'model.roi_head.bbox_head.num_classes': 1,
            'model.roi_head.mask_head.num_classes': 1,
            'model.test_cfg.rcnn.score_thr': 0.0,
            'test_evaluator.ann_file': str(root / 'coco.json'),
        }
    )
    cfg.test_dataloader.dataset.update(
        data_root=str(root),
        ann_file='coco.json',
        data_prefix=dict(img='images'),
        metainfo=dict(classes=('thing',)),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    )
    # The scale of an image that has not been resized.
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale_factor=1.0))
    return cfg


def classification(root):
    cfg = Config.fromfile(str(ROOT / 'configs/mmpretrain/clustr_t_mini.py'))
    cfg.model.head.in_channels = ARCH['embed_dims'][-1]
    cfg.test_dataloader.dataset.update(
        data_root=str(root),
        data_prefix='',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(96, 96)),
            dict(type='PackInputs'),
        ],
    )
    cfg.test_evaluator = dict(type='Accuracy', topk=(1,))
    return cfg


def pose(root):
    cfg = Config.fromfile(str(ROOT / 'configs/mmpose/topdown_clustr_t_mini.py'))
    cfg.model.neck.necks[0].in_channels = list(ARCH['embed_dims'])
    cfg.test_dataloader.dataset.update(
        data_root=str(root), ann_file='coco.json', data_prefix=dict(img='images')
    )
    cfg.test_evaluator = [dict(type='EPE'), dict(type='PCKAccuracy', thr=0.2, norm_item='bbox')]
    return cfg


def scored(cfg, work_dir, batch, **changes):
    """Tests a config's model with the weights of its seed; returns metrics and predictions."""
    cfg = Config(cfg.copy().to_dict(), filename=None)
    cfg.merge_from_dict(changes)
    cfg.model.backbone.arch = ARCH
    if 'in_channels' in (cfg.model.get('neck') or {}):
        cfg.model.neck.in_channels = list(ARCH['embed_dims'])
    cfg.test_dataloader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    for key in list(cfg):
        if key.startswith(('train_', 'val_')) or key in ('optim_wrapper', 'param_scheduler'):
            cfg.pop(key)
    cfg.default_hooks = {}
    cfg.custom_hooks = []
    cfg.work_dir, cfg.experiment_name = str(work_dir), f'{work_dir.name}_{batch}_{len(changes)}'
    cfg.visualizer.name = cfg.experiment_name
    runner = Runner.from_cfg(cfg)
    seen = []
    process = runner.test_loop.evaluator.process

    def kept(data_samples, data_batch=None):
        seen.extend(data_samples)
        process(data_samples=data_samples, data_batch=data_batch)

    runner.test_loop.evaluator.process = kept
    return runner.test(), seen


def test_segmentation_scores_alike_at_any_batch(photographs, tmp_path):
    pytest.importorskip('mmseg')
    cfg = segmentation(photographs)
    with pytest.raises(AssertionError, match='image size in a batch should be the same'):
        scored(cfg, tmp_path, 4)
    metrics, alone = scored(cfg, tmp_path, 1)
    assert len({sample.pred_sem_seg.shape for sample in alone}) == 3
    several, together = scored(cfg, tmp_path, 4, test_cfg=LOOPS['test_cfg'])
    assert several == metrics
    for one, other in zip(alone, together, strict=True):
        assert one.img_path == other.img_path
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)


def test_detection_scores_alike_at_any_batch(photographs, tmp_path):
    pytest.importorskip('mmdet')
    cfg = detection(photographs)
    metrics, alone = scored(cfg, tmp_path, 1)
    several, together = scored(cfg, tmp_path, 4, test_cfg=LOOPS['test_cfg'])
    assert several == metrics
    for one, other in zip(alone, together, strict=True):
        assert one.img_path == other.img_path and len(one.pred_instances) > 0
        torch.testing.assert_close(
            one.pred_instances.scores, other.pred_instances.scores, atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            one.pred_instances.bboxes, other.pred_instances.bboxes, atol=1e-2, rtol=1e-4
        )


def test_pose_and_classification_score_alike_at_any_batch(photographs, tmp_path):
    pytest.importorskip('mmpose')
    pytest.importorskip('mmpretrain')
    for cfg, field in ((classification(photographs), 'pred_score'), (pose(photographs), None)):
        metrics, alone = scored(cfg, tmp_path, 1)
        several, together = scored(cfg, tmp_path, 4)
        # Up to rounding: another batch sums in another order.
        assert several == pytest.approx(metrics, rel=1e-3) and len(alone) >= len(PHOTOGRAPHS)
        for one, other in zip(alone, together, strict=True):
            if field is None:
                found = [each.pred_instances.keypoints for each in (one, other)]
            else:
                found = [each.pred_score.numpy() for each in (one, other)]
            # Rounding may decide otherwise between two centres, or two cells of a heat map.
            near = np.isclose(*found, atol=1e-2 if field is None else 1e-4)
            assert near.mean() > 0.98
