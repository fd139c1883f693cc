"""What loads a batch's samples: whatever the index is, and whoever's data set."""

import json

import pytest
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from clustr_mm.engine import UserError
from clustr_mm.engine.samples import BrokenFileHook, place_batches, samples_of


def test_frames_of_videos_are_placed_as_they_are(tmp_path):
    mmdet = pytest.importorskip('mmdet.datasets')
    images = [
        dict(id=i, file_name=f'{i}.jpg', height=64, width=64, video_id=i // 3, frame_id=i % 3)
        for i in range(6)
    ]
    content = dict(images=images, annotations=[], categories=[dict(id=1, name='car')])
    (tmp_path / 'a.json').write_text(json.dumps(content))
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = Runner.build_dataloader(
            dict(
                batch_size=2,
                num_workers=0,
                dataset=dict(
                    type='BaseVideoDataset', ann_file=str(tmp_path / 'a.json'), pipeline=[],
                    metainfo=dict(classes=('car',)), filter_cfg=dict(filter_empty_gt=False),
                ),
                sampler=dict(type='TrackImgSampler'),
            ),
            seed=0,
        )  # fmt: skip
    assert type(loader.dataset) is mmdet.BaseVideoDataset
    place_batches(loader, seed=0)
    with_videos = [
        (video, frame)
        for batch in loader
        for video, frame in zip(batch['video_id'], batch['key_frame_id'], strict=True)
    ]
    assert sorted(with_videos) == [(video, frame) for video in (0, 1) for frame in (0, 1, 2)]


def test_a_data_set_that_can_take_nothing_is_named():
    with pytest.raises(UserError, match='of type list cannot be looked after'):
        samples_of([1, 2])


def test_an_action_that_is_none_is_refused():
    with pytest.raises(ValueError, match="action is 'ignore'; use one of"):
        BrokenFileHook('ignore')
