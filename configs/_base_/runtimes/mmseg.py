# A segmentation run: mmseg's registries and visualizer, progress by iterations, best by mIoU.
_base_ = './default.py'
default_scope = 'mmseg'
visualizer = dict(type='SegLocalVisualizer', vis_backends={{_base_.vis_backends}}, alpha=0.6)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, max_keep_ckpts=3, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
tta_model = dict(type='SegTTAModel')
