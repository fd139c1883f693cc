"""TorsoPCK is PCK by the annotation's torso."""

import numpy as np
import pytest

pytest.importorskip('mmpose')
from clustr_mm.integrations.pck import TorsoPCK


def person(keypoints, predicted, visible=None):
    keypoints = np.array([keypoints], float)
    visible = np.ones(keypoints.shape[:2]) if visible is None else np.array([visible])
    return dict(
        gt_instances=dict(keypoints=keypoints, keypoints_visible=visible),
        pred_instances=dict(keypoints=np.array([predicted], float)),
        img_path='person.jpg',
    )


def score(samples, **kwargs):
    metric = TorsoPCK(torso=(0, 1), **kwargs)
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_distance_is_measured_by_each_persons_torso():
    # Torsos of 10 and 100 pixels: an error of 5 is half of one and a twentieth of the other.
    short = person([(0, 0), (10, 0), (50, 50)], [(0, 0), (10, 0), (55, 50)])
    tall = person([(0, 0), (100, 0), (50, 50)], [(0, 0), (100, 0), (55, 50)])
    assert score([short])['tPCK'] == pytest.approx(2 / 3)
    assert score([tall])['tPCK'] == pytest.approx(1)
    assert score([short, tall])['tPCK'] == pytest.approx((1 + 1 + 0.5) / 3)
    assert score([short], thr=0.6, prefix='test') == {'test/tPCK': pytest.approx(1)}


def test_keypoints_without_annotation_do_not_count():
    sample = person([(0, 0), (10, 0), (0, 0)], [(0, 0), (10, 0), (99, 99)], [1, 1, 0])
    assert score([sample])['tPCK'] == pytest.approx(1)


def test_person_without_torso_is_named():
    with pytest.raises(ValueError, match='person.jpg: no torso between keypoints 0 and 1'):
        score([person([(5, 5), (5, 5), (0, 0)], [(0, 0)] * 3)])
