# Semantic FPN's schedule: batch 32 x 40,000 iterations = 1,280,000 crops, as 80,000 at batch 16.
_base_ = '../runtimes/mmseg.py'
train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=4000))
auto_scale_lr = dict(enable=False, base_batch_size=32)
