# What every top-down pose model shares: ClusTR, COCO-WholeBody's 133 keypoints, flip test.
_base_ = '../backbones/clustr.py'
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(
        type='PoseDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    head=dict(out_channels=133),
    test_cfg=dict(flip_test=True),
)
