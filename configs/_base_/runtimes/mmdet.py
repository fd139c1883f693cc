# A detection run: mmdet's registries and visualizer, progress by epochs, best by mask AP.
_base_ = './default.py'
default_scope = 'mmdet'
visualizer = dict(type='DetLocalVisualizer', vis_backends={{_base_.vis_backends}})
log_processor = dict(by_epoch=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/segm_mAP'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
