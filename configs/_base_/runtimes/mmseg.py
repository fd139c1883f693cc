# A segmentation run: mmseg's registries and visualizer, progress by iterations, best by mIoU.
_base_ = './default.py'
default_scope = 'mmseg'
visualizer = dict(
    type='SegLocalVisualizer',
    name='visualizer',
    alpha=0.6,
    vis_backends={{_base_.vis_backends}},
)
log_processor = dict(by_epoch=False)
train_cfg = dict(type='ResumableIterLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, save_best='mIoU'),
    visualization=dict(type='SegVisualizationHook', interval=1),
)
tta_model = dict(type='SegTTAModel')
