# Mask R-CNN's 3x: 36 epochs, steps after 27 and 33.
_base_ = './mask_rcnn_1x.py'
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=36, milestones=[27, 33], gamma=0.1, by_epoch=True),
]
