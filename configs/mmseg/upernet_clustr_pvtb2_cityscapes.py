"""UperNet with ClusTR from PVTv2-B2 on Cityscapes.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmseg/upernet_clustr_pvtb2_cityscapes.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 1 = batch 8; 160,000 iterations x 8 / 2,975 images = 430 epochs, SegFormer's
    schedule for Cityscapes. Another batch size: --auto-scale-lr.
Clustering: in windows; upernet_clustr_s_cityscapes.py says why.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './upernet_clustr_s_cityscapes.py'
model = dict(
    backbone=dict(arch='pvt_v2_b2'),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
