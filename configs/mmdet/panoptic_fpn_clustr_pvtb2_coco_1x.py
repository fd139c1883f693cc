"""Panoptic FPN with ClusTR from PVTv2-B2 on COCO, 1x.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmdet/panoptic_fpn_clustr_pvtb2_coco_1x.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 2 = batch 16; 118,287 images / 16 = 7,393 iterations an epoch, 12 epochs;
    AdamW at 1e-4, decay 0.05, as Mask R-CNN's 1x. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are. Reading the panoptic
    labels needs panopticapi, from its own repository.
"""

_base_ = './panoptic_fpn_clustr_s_coco_1x.py'
model = dict(backbone=dict(arch='pvt_v2_b2'), neck=dict(in_channels=[64, 128, 320, 512]))
