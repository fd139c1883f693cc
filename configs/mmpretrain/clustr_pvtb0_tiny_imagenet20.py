"""ClusTR with PVTv2-B0's body on a small set of photographs: twenty classes of Tiny ImageNet.

Run: python tools/train.py configs/mmpretrain/clustr_pvtb0_tiny_imagenet20.py
         [--data-root FOLDER OF train/CLASS AND val/CLASS]
Schedule: batch 64; 10,000 images / 64 = 157 iterations an epoch, 30 epochs, from scratch.
Expected: not measured yet.
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/tiny_imagenet20.py',
    '../_base_/runtimes/mmpretrain.py',
]
data_preprocessor = dict(num_classes=20)
model = dict(
    backbone=dict(arch='pvt_v2_b0', drop_path_rate=0.05),
    head=dict(num_classes=20, in_channels=256),
    train_cfg=None,  # no Mixup and CutMix: thirty epochs are few
)
train_cfg = dict(max_epochs=30, val_interval=5)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=200, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=50))
auto_scale_lr = dict(base_batch_size=64)
