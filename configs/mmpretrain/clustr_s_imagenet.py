"""ClusTR-S on ImageNet-1K: the classifier that every other system starts from.

Run: python tools/train.py configs/mmpretrain/clustr_s_imagenet.py
Schedule: 8 GPUs x 128 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 300
    epochs. Another batch size: --auto-scale-lr.
Expected: 83.2 top-1 (paper, not reproduced here).
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
]
model = dict(backbone=dict(arch='small', drop_path_rate=0.1))
