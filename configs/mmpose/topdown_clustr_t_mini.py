"""Top-down whole-body pose with ClusTR-T on the mini data set, from scratch, persons at 192x144.

Run: python tools/make_mini_data.py data/mini/wholebody --layout coco_wholebody --train 1500
         --val 120 --size 256 256
     python tools/train.py configs/mmpose/topdown_clustr_t_mini.py
Schedule: batch 8; 1,307 persons / 8 = 164 iterations an epoch, 7 epochs.
Expected: 58.8 AP (docs/results.md).
"""

_base_ = [
    '../_base_/models/topdown_heatmap.py',
    '../_base_/datasets/wholebody_mini.py',
    '../_base_/schedules/wholebody_210e.py',
    '../_base_/schedules/mini_7e.py',
]
# Narrower than the real one: it is meant for two cores.
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0),
    neck=dict(
        necks=[
            dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
            dict(type='FeatureMapProcessor', select_index=0),
        ]
    ),
    head=dict(in_channels=64, decoder={{_base_.codec}}),
    test_cfg=dict(shift_heatmap=False),
)
# Steps are few: a quicker second moment, and twice the real recipe's rate.
optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98)), clip_grad=dict(max_norm=1.0))
train_cfg = dict(max_epochs=7, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=1))
param_scheduler = {{_base_.seven_epochs}}
auto_scale_lr = dict(base_batch_size=8)
