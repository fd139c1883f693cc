"""ClusTR-B on ImageNet-1K: the classifier that every other system starts from.

Run: python tools/train.py configs/mmpretrain/clustr_b_imagenet.py
Schedule: 8 GPUs x 128 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 300
    epochs. Another batch size: --auto-scale-lr.
Expected: nothing measured here; the paper has 83.2 top-1 for the small model.
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
]
model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
