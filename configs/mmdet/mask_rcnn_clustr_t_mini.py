"""Mask R-CNN with ClusTR-T on the mini data set, from scratch.

Run: python tools/make_mini_data.py data/mini/coco --layout coco --train 1500 --val 120 --size 96 96
     python tools/train.py configs/mmdet/mask_rcnn_clustr_t_mini.py
Schedule: from scratch; batch 8; 1,500 images / 8 = 188 iterations an epoch, 5 epochs.
Expected: 83.3 box AP50 and 72.5 mask AP50 (docs/results.md).
"""

_base_ = [
    '../_base_/models/mask_rcnn.py',
    '../_base_/datasets/coco_mini.py',
    '../_base_/schedules/mask_rcnn_1x.py',
]
norm = dict(type='GN', num_groups=8)
# Narrower than the real one, with fewer regions: it is meant for two cores.
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0),
    neck=dict(out_channels=64, norm_cfg=norm),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=7),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=7),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
# Steps are few: a quicker second moment, and 5 times the real recipe's rate.
optim_wrapper = dict(optimizer=dict(lr=5e-4, betas=(0.9, 0.98)), clip_grad=dict(max_norm=10.0))
train_cfg = dict(max_epochs=5, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=100, by_epoch=False),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        begin=0,
        end=5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=8)
