# What starts from ImageNet weights: 30 epochs at a tenth of the rate, one of them warm-up.
_base_ = './imagenet_300e.py'
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        begin=0,
        end=1,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=1,
        end=30,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
