"""Mask R-CNN with ClusTR from PVTv2-B2 on COCO, 1x.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmdet/mask_rcnn_clustr_pvtb2_coco_1x.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 2 = batch 16; 117,266 images / 16 = 7,330 iterations an epoch, 12 epochs.
    Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = [
    '../_base_/models/mask_rcnn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/mask_rcnn_1x.py',
]
model = dict(
    backbone=dict(arch='pvt_v2_b2', drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
