"""Semantic FPN with ClusTR of PVTv2-B0's body on a small set of label maps: CamVid at 240 x 180.

Run: python tools/train.py configs/mmseg/semfpn_clustr_pvtb0_camvid.py [--data-root FOLDER OF
         images/{train,val,test} AND annotations/{train,val,test}]
Schedule: from scratch; batch 2; 800 iterations x 2 / 367 images = 4.4 epochs, about five minutes of
    one core. Longer: --cfg-options train_cfg.max_iters=N, and the rate follows.
Expected: 32.7 mIoU on test (32.4, 33.3, 32.4 of three seeds); docs/real_data.md has its peers.
"""

_base_ = [
    '../_base_/models/semfpn.py',
    '../_base_/datasets/camvid.py',
    '../_base_/runtimes/mmseg.py',
]
# Narrower than the real one, and plain BN: it is meant for two cores, where SyncBN cannot run.
model = dict(
    data_preprocessor=dict(size=(180, 240)),  # the training crop
    backbone=dict(arch='pvt_v2_b0', drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=11,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
)
# Steps are few: a quicker second moment.
train_cfg = dict(max_iters=800, val_interval=200)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=50, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=200))
auto_scale_lr = dict(enable=False, base_batch_size=2)
