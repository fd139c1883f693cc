"""RetinaNet with ClusTR-S on COCO, 1x: mmdet's PVTv2 recipe.

Run: python tools/train.py configs/mmdet/retinanet_clustr_s_coco_1x.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs;
    AdamW at 1e-4, decay 1e-4, as PVTv2. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = 'mmdet::pvt/retinanet_pvtv2-b2_fpn_1x_coco.py'
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    # Clusters and padding as in ../_base_/models/mask_rcnn.py.
    backbone=dict(_delete_=True, type='ClusTR', arch='small', crop_padding=True, cluster_window=56),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
