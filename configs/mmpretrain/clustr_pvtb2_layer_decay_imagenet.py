"""ClusTR from PVTv2-B2 fine-tuned on ImageNet-1K with a rate that falls from layer to layer.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpretrain/clustr_pvtb2_layer_decay_imagenet.py
         --cfg-options load_from=clustr_pvtb2.safetensors
Schedule: 8 GPUs x 128 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 30
    epochs. The head learns at 5e-4 and every layer below at 0.9 times the rate of the one above,
    the 0.9 of mmpretrain's fine-tuning of Swin. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './clustr_s_layer_decay_imagenet.py'
model = dict(backbone=dict(arch='pvt_v2_b2'))
