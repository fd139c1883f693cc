"""The prediction file: one format for four tasks, that COCO's own tools read."""

import json

import numpy as np
import pytest
import torch

from clustr_mm.engine import UserError
from clustr_mm.engine.predictions import PredictionFile, encode_mask, make_record

mask_tools = pytest.importorskip('pycocotools.mask')
BASE = dict(img_path='images/1.jpg', ori_shape=(4, 6))


@pytest.mark.parametrize('density', [0, 0.02, 0.5, 0.98, 1])
def test_masks_are_cocos_code_byte_for_byte(density):
    rng = np.random.default_rng(0)
    for grain in (1, 13):
        for _ in range(20):
            small = rng.random(rng.integers(1, 40, 2)) < density
            mask = np.kron(small, np.ones((grain, grain), dtype=bool))
            theirs = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            ours = encode_mask(mask)
            assert ours['counts'] == theirs['counts'].decode()
            assert ours['size'] == list(mask.shape)


def test_segments_cover_the_image_once():
    labels = torch.tensor([[0, 0, 2, 2, 2, 2]] * 4)
    sample = dict(BASE, pred_sem_seg=dict(data=labels[None]))
    record = make_record(sample, ['wall', 'sky ', 'tree'])
    assert [each['name'] for each in record['segments']] == ['wall', 'tree']
    masks = [mask_tools.decode(each['segmentation']) for each in record['segments']]
    assert np.array_equal(masks[1] * 2, labels.numpy())
    assert np.array_equal(sum(masks), np.ones((4, 6)))
    assert (record['image'], record['height'], record['width']) == ('images/1.jpg', 4, 6)


def test_instances_have_boxes_as_coco_writes_them():
    instances = dict(
        labels=torch.tensor([1]),
        bboxes=torch.tensor([[1.0, 0.0, 4.0, 2.0]]),
        scores=torch.tensor([0.5]),
        masks=torch.ones(1, 4, 6, dtype=torch.bool),
    )
    (instance,) = make_record(dict(BASE, pred_instances=instances), ['a', 'b'])['instances']
    assert instance['name'] == 'b'
    assert instance['bbox'] == [1, 0, 3, 2]
    assert mask_tools.area(instance['segmentation']) == 24


def test_an_image_without_an_object_keeps_its_record():
    empty = dict(labels=torch.zeros(0), bboxes=torch.zeros(0, 4), scores=torch.zeros(0))
    assert make_record(dict(BASE, pred_instances=empty), ['a'])['instances'] == []


def test_labels_are_the_likeliest_first():
    sample = dict(BASE, pred_score=torch.tensor([0.1, 0.7, 0.2]))
    labels = make_record(sample, ['a', 'b', 'c'])['labels']
    assert [each['name'] for each in labels] == ['b', 'c', 'a']


def test_persons_of_one_image_share_a_record(tmp_path):
    persons = [
        dict(
            BASE,
            pred_instances=dict(
                bboxes=np.array([[0.0, 0, 2, 2]]),
                bbox_scores=np.array([score]),
                keypoints=np.full((1, 133, 2), 1.5),
                keypoint_scores=np.full((1, 133), 0.25),
            ),
        )
        for score in (0.9, 0.8)
    ]
    metric = PredictionFile(str(tmp_path / 'new' / 'predictions.json'))
    metric.dataset_meta = dict(classes=None)
    metric.process(None, persons[:1])
    metric.process(None, persons[1:])
    assert metric.evaluate(size=2) == {}
    (record,) = json.loads((tmp_path / 'new' / 'predictions.json').read_text())
    assert [person['score'] for person in record['persons']] == [0.9, 0.8]
    assert len(record['persons'][0]['keypoints']) == 133
    assert record['persons'][0]['keypoints'][0] == [1.5, 1.5, 0.25]


def test_an_unknown_kind_of_output_is_refused():
    with pytest.raises(ValueError, match='pred_depth'):
        make_record(dict(BASE, pred_depth=1), None)


def test_a_folder_is_refused_before_the_test(tmp_path):
    with pytest.raises(UserError, match='is a folder; name a file in it'):
        PredictionFile(str(tmp_path))
