"""Panoptic FPN with ClusTR-S on COCO, 1x.

Run: python tools/train.py configs/mmdet/panoptic_fpn_clustr_s_coco_1x.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 118,287 images / 16 = 7,393 iterations an epoch, 12 epochs;
    AdamW at 1e-4, decay 0.05, as Mask R-CNN's 1x. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head. Reading the panoptic
    labels needs panopticapi, from its own repository.
"""

_base_ = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    # Clusters and padding as in ../_base_/models/mask_rcnn.py.
    backbone=dict(
        _delete_=True, type='ClusTR', arch='small', drop_path_rate=0.2, crop_padding=True,
        cluster_window=56,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)  # fmt: skip
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
