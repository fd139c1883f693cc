"""RTMPose with ClusTR from PVTv2-B2 on COCO-WholeBody, 256x192: mmpose's recipe.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpose/rtmpose_clustr_pvtb2_wholebody_256x192.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 270 epochs;
    AdamW at 5e-4 as ../_base_/schedules/wholebody_210e.py (RTMPose's 4e-3 is for a convolutional
    backbone). Another batch size: --auto-scale-lr. The data need albumentations.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './rtmpose_clustr_s_wholebody_256x192.py'
model = dict(backbone=dict(arch='pvt_v2_b2'))
