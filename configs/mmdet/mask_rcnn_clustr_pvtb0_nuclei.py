"""Mask R-CNN with ClusTR of PVTv2-B0's body on a small set of masks: nuclei at 256 x 256.

Run: python tools/train.py configs/mmdet/mask_rcnn_clustr_pvtb0_nuclei.py [--data-root FOLDER OF
         {train,val,test}/ AND annotations/instances_{train,val,test}.json]
Schedule: from scratch; batch 4; 793 images / 4 = 199 iterations an epoch, 2 epochs, about six
    minutes of one core. Longer: --cfg-options train_cfg.max_epochs=N, and the rate follows.
Expected: 39.7 mask AP on test (39.3, 39.2, 40.5 of three seeds); docs/real_data.md has its peers.
"""

_base_ = [
    '../_base_/models/mask_rcnn.py',
    '../_base_/datasets/nuclei.py',
    '../_base_/runtimes/mmdet.py',
]
norm = dict(type='GN', num_groups=8)
# Narrower than the real one: it is meant for two cores. Objects are small (20 pixels a side in the
# median) and many: two finer sizes of anchors, 300 proposals, 200 detections.
model = dict(
    backbone=dict(arch='pvt_v2_b0', drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64, norm_cfg=norm),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[2, 3])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=1),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=1),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=256)),
        rpn_proposal=dict(nms_pre=600, max_per_img=300),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=600, max_per_img=300), rcnn=dict(max_per_img=200)),
)
# Steps are few: a quicker second moment.
train_cfg = dict(max_epochs=2, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
