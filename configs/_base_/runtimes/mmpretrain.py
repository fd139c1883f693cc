# A classification run: mmpretrain's registries and visualizer, progress by epochs, best by top-1.
_base_ = './default.py'
default_scope = 'mmpretrain'
visualizer = dict(type='UniversalVisualizer', vis_backends={{_base_.vis_backends}})
log_processor = dict(by_epoch=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='accuracy/top1'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
