"""ClusTR-S on ImageNet-1K at 384x384, from its weights of 224x224.

Run: python tools/train.py configs/mmpretrain/clustr_s_imagenet_384.py
         --cfg-options load_from=CHECKPOINT
Schedule: 16 GPUs x 64 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 30
    epochs at a constant 1e-5, decay 1e-8, as Swin (arXiv 2103.14030, appendix A2.1). Another batch
    size: --auto-scale-lr.
Clustering: of the whole image, as at 224x224: 44.0 GMAC in ClusTR-S's backbone;
    cluster_window=56 makes that 26.7 (tools/analysis/get_flops.py --backbone --shape 384 384).
Expected: nothing measured here, and the paper has no such figure.
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_30e.py',
]
model = dict(backbone=dict(arch='small', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = []
