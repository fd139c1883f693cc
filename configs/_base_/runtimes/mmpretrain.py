# A classification run: mmpretrain's registries and visualizer, progress by epochs, best by top-1.
_base_ = './default.py'
default_scope = 'mmpretrain'
env_cfg = dict(cudnn_benchmark=True)
visualizer = dict(
    type='UniversalVisualizer', name='visualizer', vis_backends={{_base_.vis_backends}}
)
log_processor = dict(by_epoch=True)
train_cfg = dict(type='ResumableEpochLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(interval=1, save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook', enable=False),
)
