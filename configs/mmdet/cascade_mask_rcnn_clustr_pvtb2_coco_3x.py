"""Cascade Mask R-CNN with ClusTR from PVTv2-B2 on COCO, 3x.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmdet/cascade_mask_rcnn_clustr_pvtb2_coco_3x.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 2 = batch 16; 117,266 images / 16 = 7,330 iterations an epoch, 36 epochs,
    short sides of 480 to 800 and crops, as Swin and PVTv2. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './cascade_mask_rcnn_clustr_s_coco_3x.py'
model = dict(backbone=dict(arch='pvt_v2_b2'), neck=dict(in_channels=[64, 128, 320, 512]))
