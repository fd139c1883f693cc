"""Panoptic Mask2Former with ClusTR from PVTv2-B2 on COCO: mmdet's recipe.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmdet/mask2former_clustr_pvtb2_coco_panoptic_50e.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 2 = batch 16; 368,750 iterations x 16 / 118,287 images = 50 epochs, jittered
    in scale to 1024x1024; AdamW at 1e-4, a tenth of it in the backbone, as Swin. Another batch
    size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are. Reading the panoptic
    labels needs panopticapi, from its own repository.
"""

_base_ = './mask2former_clustr_s_coco_panoptic_50e.py'
model = dict(backbone=dict(arch='pvt_v2_b2'), panoptic_head=dict(in_channels=[64, 128, 320, 512]))
