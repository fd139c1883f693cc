"""UperNet with ClusTR-T on the mini data set: what `make demo` trains.

Run: python tools/demo_train.py (makes the data, trains, tests, draws), or with the data made,
    python tools/train.py configs/mmseg/upernet_clustr_t_mini.py
Schedule: batch 8; 500 iterations x 8 / 800 images = 5 epochs from scratch.
Expected: mIoU 60 or more (measured, see the README); untrained under 5.
"""

_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k_mini.py',
    '../_base_/schedules/upernet_160k.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='tiny', drop_path_rate=0.0),
    decode_head=dict(channels=64, num_classes=12, norm_cfg=norm_cfg, dropout_ratio=0.0),
    auxiliary_head=None,
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0))
train_cfg = dict(max_iters=500, val_interval=250)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=50, end=500, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
