# What every run shares, whichever library's.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
randomness = dict(seed=0)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
# A damaged training file stops the run and is named; 'skip' trains on without it, with a warning.
on_broken_file = 'raise'
# A step whose loss or gradient is no number is left out; three in a row stop the run (None: never),
# and what it takes to compute the first ones again is kept.
numerics_guard = dict(stop_after=3)
