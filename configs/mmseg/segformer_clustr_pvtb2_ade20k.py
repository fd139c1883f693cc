"""SegFormer's head on ClusTR from PVTv2-B2, ADE20K.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmseg/segformer_clustr_pvtb2_ade20k.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 2 = batch 16; 160,000 iterations x 16 / 20,210 images = 127 epochs; AdamW at
    6e-5, ten times that in the head, as SegFormer. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './segformer_clustr_s_ade20k.py'
model = dict(backbone=dict(arch='pvt_v2_b2'), decode_head=dict(in_channels=[64, 128, 320, 512]))
