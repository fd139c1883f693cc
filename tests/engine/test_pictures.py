"""A picture of every image: names that do not collide, small images enlarged."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from clustr_mm.engine.pictures import PictureHook, _enlarge, draw_sample


def test_images_of_one_name_get_pictures_of_their_own(tmp_path):
    hook = PictureHook(str(tmp_path))
    names = [hook._name(path) for path in ('a/x/1.jpg', 'b/x/1.jpg', 'a/x/1.jpg', 'a/x/2.png')]
    assert names == ['1.jpg', 'x_1.jpg', '1.jpg', '2.jpg']
    assert hook._name('c/x/1.jpg') not in names


def test_label_maps_grow_with_their_image():
    structures = pytest.importorskip('mmseg.structures')
    sample = structures.SegDataSample(metainfo=dict(img_path='1.jpg'))
    sample.pred_sem_seg = PixelData(data=torch.tensor([[[1, 2]]]))
    sample.gt_sem_seg = PixelData(data=torch.tensor([[[3, 4]]]))
    image, large = _enlarge(np.zeros((1, 2, 3), np.uint8), sample, 3)
    assert image.shape == (3, 6, 3)
    assert large.pred_sem_seg.data[0, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert large.gt_sem_seg.data.shape == (1, 3, 6)
    assert sample.pred_sem_seg.data.shape == (1, 1, 2)


def test_boxes_masks_and_keypoints_grow_with_their_image():
    detection = pytest.importorskip('mmdet.structures')
    boxes = pytest.importorskip('mmdet.structures.bbox').HorizontalBoxes
    masks = pytest.importorskip('mmdet.structures.mask').BitmapMasks
    sample = detection.DetDataSample(metainfo=dict(img_path='1.jpg'))
    sample.gt_instances = InstanceData(
        bboxes=boxes(torch.tensor([[0.0, 0, 2, 1]])),
        masks=masks(np.ones((1, 1, 2), np.uint8), 1, 2),
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 1, 1]]), masks=torch.tensor([[[True, False]]])
    )
    sample.pred_instances.keypoints = np.array([[[0.5, 1.0]]])
    _, large = _enlarge(np.zeros((1, 2, 3), np.uint8), sample, 3)
    assert large.gt_instances.bboxes.tensor.tolist() == [[0, 0, 6, 3]]
    assert large.gt_instances.masks.masks.shape == (1, 3, 6)
    assert large.pred_instances.bboxes.tolist() == [[0, 0, 3, 3]]
    assert large.pred_instances.masks[0, 2].tolist() == [True] * 3 + [False] * 3
    assert large.pred_instances.keypoints.tolist() == [[[1.5, 3.0]]]
    assert sample.gt_instances.bboxes.tensor.tolist() == [[0, 0, 2, 1]]
    assert sample.pred_instances.bboxes.tolist() == [[0, 0, 1, 1]]


def test_a_picture_is_the_same_every_time(tmp_path):
    detection = pytest.importorskip('mmdet.structures')
    visualizer = pytest.importorskip('mmdet.visualization').DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=('cat',))
    photo = str(tmp_path / 'photo.png')
    cv2.imwrite(photo, np.zeros((40, 60, 3), np.uint8))
    sample = detection.DetDataSample(metainfo=dict(img_path=photo))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 50, 30]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
        masks=torch.ones(1, 40, 60, dtype=torch.bool),
    )
    drawn = []
    for seed in range(2):
        np.random.seed(seed)
        expected = np.random.RandomState(seed).rand()
        draw_sample(visualizer, sample, str(tmp_path / f'{seed}.png'), draw_gt=False)
        assert np.random.rand() == expected, 'and drawing has no part in the chance of others'
        drawn.append((tmp_path / f'{seed}.png').read_bytes())
    assert drawn[0] == drawn[1]
    assert cv2.imread(str(tmp_path / '0.png')).any()
