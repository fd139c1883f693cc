# A small set of people, one in a picture, with keypoints in COCO's format: Leeds Sports Pose, 900
# people to train on, 100 to choose by and 1000 to test on, 14 keypoints in CrowdPose's order. Boxes
# are the annotated ones; people are cut out at 192 x 144, and heat maps are a quarter of that.
data_root = 'data/lsp'
codec = dict(type='UDPHeatmap', input_size=(144, 192), heatmap_size=(36, 48), sigma=1.5)
# Of a few epochs: other sizes and turned people cost four points of PCK on val there. A longer
# training wants them (RandomBBoxTransform after the flip).
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CrowdPoseDataset',
        data_root=data_root,
        data_mode='topdown',
        ann_file='annotations/lsp_train.json',
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='CrowdPoseDataset',
        data_root=data_root,
        data_mode='topdown',
        ann_file='annotations/lsp_val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='CrowdPoseDataset',
        data_root=data_root,
        data_mode='topdown',
        ann_file='annotations/lsp_test.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# A keypoint counts within a fifth of the torso, from left shoulder (0) to right hip (7).
val_evaluator = dict(type='clustr_mm.integrations.pck.TorsoPCK', thr=0.2, torso=(0, 7))
test_evaluator = val_evaluator
