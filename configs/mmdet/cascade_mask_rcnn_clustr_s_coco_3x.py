"""Cascade Mask R-CNN with ClusTR-S on COCO, 3x.

Run: python tools/train.py configs/mmdet/cascade_mask_rcnn_clustr_s_coco_3x.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 117,266 images / 16 = 7,330 iterations an epoch, 36 epochs,
    short sides of 480 to 800 and crops, as Swin and PVTv2. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_multiscale.py',
    '../_base_/schedules/mask_rcnn_3x.py',
]
model = dict(
    # Clusters and padding as in ../_base_/models/mask_rcnn.py.
    backbone=dict(
        _delete_=True,
        type='ClusTR',
        arch='small',
        drop_path_rate=0.2,
        crop_padding=True,
        cluster_window=56,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
