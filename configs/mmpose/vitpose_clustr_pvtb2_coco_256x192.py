"""ViTPose's simple head on ClusTR from PVTv2-B2, COCO's 17 keypoints, 256x192: mmpose's recipe.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpose/vitpose_clustr_pvtb2_coco_256x192.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs;
    AdamW at 5e-4, 0.8 times that from layer to layer, as ViTPose. Another batch size:
    --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './vitpose_clustr_s_coco_256x192.py'
model = dict(backbone=dict(arch='pvt_v2_b2'))
