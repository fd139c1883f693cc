"""ClusTR from PVTv2-B2 on ImageNet-1K at 384x384, from its weights of 224x224.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpretrain/clustr_pvtb2_imagenet_384.py
         --cfg-options load_from=clustr_pvtb2.safetensors
Schedule: 16 GPUs x 64 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 30
    epochs at a constant 1e-5, decay 1e-8, as Swin (arXiv 2103.14030, appendix A2.1). Another batch
    size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are; those of
    clustr_pvtb2_imagenet.py, trained, are the better start.
"""

_base_ = './clustr_s_imagenet_384.py'
model = dict(backbone=dict(arch='pvt_v2_b2'))
