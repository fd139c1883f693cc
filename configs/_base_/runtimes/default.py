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
