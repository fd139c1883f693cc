# A detection run: mmdet's registries and visualizer, progress by epochs, best by mask AP.
_base_ = './default.py'
default_scope = 'mmdet'
visualizer = dict(
    type='DetLocalVisualizer', name='visualizer', vis_backends={{_base_.vis_backends}}
)
log_processor = dict(by_epoch=True)
train_cfg = dict(type='ResumableEpochLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(interval=1, save_best='coco/segm_mAP'),
    visualization=dict(type='DetVisualizationHook'),
)
