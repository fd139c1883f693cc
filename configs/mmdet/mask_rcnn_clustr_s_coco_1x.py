"""Mask R-CNN with ClusTR-S on COCO, 1x.

Run: python tools/train.py configs/mmdet/mask_rcnn_clustr_s_coco_1x.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs.
    Another batch size: --auto-scale-lr.
Expected: better than Swin and PVTv2 of its size (paper, not reproduced here; it gives no table
    that could be quoted). It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/mask_rcnn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/mask_rcnn_1x.py',
]
model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
