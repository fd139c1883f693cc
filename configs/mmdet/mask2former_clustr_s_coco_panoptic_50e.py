"""Panoptic Mask2Former with ClusTR-S on COCO: mmdet's recipe.

Run: python tools/train.py configs/mmdet/mask2former_clustr_s_coco_panoptic_50e.py
         --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 368,750 iterations x 16 / 118,287 images = 50 epochs, jittered
    in scale to 1024x1024; AdamW at 1e-4, a tenth of it in the backbone, as Swin. Another batch
    size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head. Reading the panoptic
    labels needs panopticapi, from its own repository.
"""

_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../_base_/schedules/mask2former_norms.py',
]
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    # Clusters and padding as in ../_base_/models/mask_rcnn.py.
    backbone=dict(
        _delete_=True, type='ClusTR', arch='small', drop_path_rate=0.3, crop_padding=True,
        cluster_window=56,
    ),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)  # fmt: skip
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.backbone_norms}}))
