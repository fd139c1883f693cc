"""UperNet with ClusTR of PVTv2-B0's body on the mini data set: what `make demo` trains.

Run: python tools/demo_train.py (makes the data, trains, draws), or with the data made,
    python tools/train.py configs/mmseg/upernet_clustr_pvtb0_mini.py
Schedule: from scratch; batch 4; 700 iterations x 4 / 800 images = 3.5 epochs.
Expected: 61.7 mIoU (docs/results.md).
"""

_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k_mini.py',
    '../_base_/schedules/upernet_160k.py',
]
# Narrower than the real one, and plain BN: it is meant for two cores, where SyncBN cannot run.
model = dict(
    data_preprocessor=dict(size=(80, 80)),
    backbone=dict(arch='pvt_v2_b0', drop_path_rate=0.0),
    decode_head=dict(
        in_channels=[32, 64, 160, 256],
        channels=48,
        num_classes=12,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN', requires_grad=True),
        # A thing covers a tenth of what the stuff does: without weights it is learnt last.
        loss_decode=dict(
            _delete_=True,
            type='ClassWeightedCrossEntropy',
            class_weight=[1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3],
        ),
    ),
    auxiliary_head=None,
)
# Steps are few: a quicker second moment, and 67 times the real recipe's rate.
optim_wrapper = dict(optimizer=dict(lr=4e-3, betas=(0.9, 0.98)), clip_grad=dict(max_norm=1.0))
train_cfg = dict(max_iters=700, val_interval=700)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=50, end=700, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=700))
auto_scale_lr = dict(base_batch_size=4)
