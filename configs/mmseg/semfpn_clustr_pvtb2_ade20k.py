"""Semantic FPN with ClusTR from PVTv2-B2 on ADE20K.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmseg/semfpn_clustr_pvtb2_ade20k.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 4 = batch 32; 40,000 iterations x 32 / 20,210 images = 63 epochs. Another
    batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = [
    '../_base_/models/semfpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/semfpn_40k.py',
]
model = dict(
    backbone=dict(arch='pvt_v2_b2', drop_path_rate=0.15),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
train_dataloader = dict(batch_size=4)
