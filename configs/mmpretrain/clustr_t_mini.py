"""ClusTR-T on the mini data set, from scratch: the backbone that the other mini runs start from.

Run: python tools/make_mini_data.py data/mini/imagenet --layout imagenet --train 7500 --val 500
         --size 64 64
     python tools/train.py configs/mmpretrain/clustr_t_mini.py
Schedule: batch 16; 7,500 images / 16 = 469 iterations an epoch, 7 epochs.
Expected: 97.2 top-1 (docs/results.md).
"""

_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_mini.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/schedules/mini_7e.py',
]
data_preprocessor = dict(num_classes=10)
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0),
    head=dict(num_classes=10),
    train_cfg=None,  # no Mixup and CutMix: a run this short is far from overfitting
)
# Steps are few: a quicker second moment.
optim_wrapper = dict(optimizer=dict(lr=5e-4, betas=(0.9, 0.98)), clip_grad=dict(max_norm=5.0))
train_cfg = dict(max_epochs=7, val_interval=2)
param_scheduler = {{_base_.seven_epochs}}
auto_scale_lr = dict(base_batch_size=16)
