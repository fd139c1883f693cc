"""ClusTR-S fine-tuned on ImageNet-1K with a rate that falls from layer to layer.

Run: python tools/train.py configs/mmpretrain/clustr_s_layer_decay_imagenet.py
         --cfg-options load_from=CHECKPOINT
Schedule: 8 GPUs x 128 = batch 1024; 1,281,167 images / 1024 = 1,251 iterations an epoch, 30
    epochs. The head learns at 5e-4 and every layer below at 0.9 times the rate of the one above,
    the 0.9 of mmpretrain's fine-tuning of Swin. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such figure.
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_30e.py',
]
model = dict(backbone=dict(arch='small', drop_path_rate=0.1))
optim_wrapper = dict(
    constructor='LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(layer_decay_rate=0.9, flat_decay_mult=0.0),
)
