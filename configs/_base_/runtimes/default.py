# What every run shares, whichever library's, and what ours add to mmengine's runner: checkpoints
# that are whole or not there, a resumption that is bit by bit the run that was not stopped, and
# words for damaged files and for NaN. Each is a hook or a loop by name.
custom_imports = dict(
    imports=[
        'clustr_mm',
        'clustr_mm.engine.checkpoints',  # SafeCheckpointHook
        'clustr_mm.engine.numerics',  # NumericsGuardHook
        'clustr_mm.engine.pictures',  # ReadableImageHook
        'clustr_mm.engine.resuming',  # ResumableEpochLoop, ResumableIterLoop, ResumeHook
        'clustr_mm.engine.samples',  # BrokenFileHook
    ],
    allow_failed_imports=False,
)
env_cfg = dict(
    cudnn_benchmark=False,  # True where all images have one size
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
randomness = dict(seed=0)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    resume=dict(type='ResumeHook'),
    # --show-dir on images of many bands or 16 bits.
    readable=dict(type='ReadableImageHook'),
    # A damaged training file stops the run and is named; 'skip' trains on without it.
    broken_files=dict(type='BrokenFileHook', action='raise'),
    # A step whose loss or gradient is NaN or infinite is left out; three in a row stop the run.
    numerics_guard=dict(type='NumericsGuardHook', stop_after=3),
)
