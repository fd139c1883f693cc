"""Top-down pose with ClusTR of PVTv2-B0's body on a small set of people: LSP at 192 x 144.

Run: python tools/train.py configs/mmpose/topdown_clustr_pvtb0_lsp.py [--data-root FOLDER OF
         images/ AND annotations/lsp_{train,val,test}.json]
Schedule: from scratch; batch 4; 900 people / 4 = 225 iterations an epoch, 4 epochs. Longer:
    --cfg-options train_cfg.max_epochs=N, and the rate follows.
Expected: 47.5 PCK@0.2 on test (47.7, 47.2, 47.7 of three seeds); docs/real_data.md has its peers.
"""

_base_ = [
    '../_base_/models/topdown_heatmap.py',
    '../_base_/datasets/lsp.py',
    '../_base_/runtimes/mmpose.py',
]
# Narrower than the real one: it is meant for two cores.
model = dict(
    backbone=dict(arch='pvt_v2_b0', drop_path_rate=0.0),
    neck=dict(
        necks=[
            dict(type='FPN', in_channels=[32, 64, 160, 256], out_channels=64, num_outs=4),
            dict(type='FeatureMapProcessor', select_index=0),
        ]
    ),
    head=dict(in_channels=64, out_channels=14, decoder={{_base_.codec}}),
    test_cfg=dict(shift_heatmap=False),
)
# Steps are few: a quicker second moment.
train_cfg = dict(max_epochs=4, val_interval=2)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=40, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=2, save_best='tPCK'))
auto_scale_lr = dict(enable=False, base_batch_size=4)
