# Mask R-CNN's 1x: batch 16, 12 epochs, a tenth of the rate after 8 and again after 11; no decay on
# norms.
_base_ = '../runtimes/mmdet.py'
train_cfg = dict(max_epochs=12, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=12, milestones=[8, 11], gamma=0.1, by_epoch=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
