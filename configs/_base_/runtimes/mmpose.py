# A pose run: mmpose's registries and visualizer, progress by epochs, best by whole-body AP.
_base_ = './default.py'
default_scope = 'mmpose'
# Points small enough that 68 of them still leave a face to be seen.
visualizer = dict(type='PoseLocalVisualizer', radius=2, vis_backends={{_base_.vis_backends}})
log_processor = dict(by_epoch=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=10,
        max_keep_ckpts=3,
        save_best='coco-wholebody/AP',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
