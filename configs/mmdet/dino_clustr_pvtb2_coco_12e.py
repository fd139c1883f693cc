"""DINO of four scales with ClusTR from PVTv2-B2 on COCO, 12 epochs: mmdet's recipe.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmdet/dino_clustr_pvtb2_coco_12e.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 2 = batch 16; 118,287 images / 16 = 7,393 iterations an epoch, 12 epochs;
    AdamW at 1e-4, a tenth of it in the backbone. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './dino_clustr_s_coco_12e.py'
model = dict(backbone=dict(arch='pvt_v2_b2'), neck=dict(in_channels=[128, 320, 512]))
