"""ClusTR from PVTv2-B2 on ImageNet-1K, with PVTv2-B2 as its teacher.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpretrain/clustr_pvtb2_distilled_imagenet.py
         --cfg-options load_from=clustr_pvtb2.safetensors
Schedule: 8 GPUs x 128 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 30
    epochs. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are, and has
    the lines for images of one's own, with labels or without.
"""

_base_ = './clustr_pvtb2_imagenet.py'
model = dict(
    type='clustr_mm.integrations.distillation.DistilledClassifier',
    teacher='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth',
    backbone=dict(out_indices=(0, 1, 2, 3)),
)
