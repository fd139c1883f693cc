# A pose run: mmpose's registries and visualizer, progress by epochs, best by whole-body AP.
_base_ = './default.py'
default_scope = 'mmpose'
env_cfg = dict(cudnn_benchmark=True)
visualizer = dict(
    type='PoseLocalVisualizer',
    name='visualizer',
    radius=2,  # small enough that 68 points still leave a face to be seen
    vis_backends={{_base_.vis_backends}},
)
log_processor = dict(by_epoch=True)
train_cfg = dict(type='ResumableEpochLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(interval=10, save_best='coco-wholebody/AP', rule='greater'),
    visualization=dict(type='PoseVisualizationHook', enable=False),
    badcase=dict(type='BadCaseAnalysisHook', enable=False, out_dir='badcase', metric_type='loss'),
)
