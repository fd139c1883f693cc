"""Mask R-CNN with ClusTR-S on COCO, 3x.

Run: python tools/train.py configs/mmdet/mask_rcnn_clustr_s_coco_3x.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 117,266 images / 16 = 7,330 iterations an epoch, 36 epochs,
    short sides of 480 to 800 and crops. Another batch size: --auto-scale-lr.
Expected: better than Swin and PVTv2 of its size (paper, not reproduced here; it gives no table
    that could be quoted). It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/mask_rcnn.py',
    '../_base_/datasets/coco_instance_multiscale.py',
    '../_base_/schedules/mask_rcnn_3x.py',
]
model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
