"""ClusTR from PVTv2-B2 on ImageNet-1K, head and all.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpretrain/clustr_pvtb2_imagenet.py
         --cfg-options load_from=clustr_pvtb2.safetensors
Schedule: 8 GPUs x 128 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 30
    epochs. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_30e.py',
]
model = dict(backbone=dict(arch='pvt_v2_b2', drop_path_rate=0.1))
