"""DINO of four scales with ClusTR-S on COCO, 12 epochs: mmdet's recipe.

Run: python tools/train.py configs/mmdet/dino_clustr_s_coco_12e.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 118,287 images / 16 = 7,393 iterations an epoch, 12 epochs;
    AdamW at 1e-4, a tenth of it in the backbone. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    # Clusters and padding as in ../_base_/models/mask_rcnn.py.
    backbone=dict(
        _delete_=True,
        type='ClusTR',
        arch='small',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        crop_padding=True,
        cluster_window=56,
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
