# DeepSpeed ZeRO stage 2: each process keeps a share of the gradients and of the optimizer's two
# moments. Needs the package deepspeed. Checkpoints are folders; the script zero_to_fp32.py in them
# makes one file of weights of each.
strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=1.0,
    zero_optimization=dict(
        stage=2,
        overlap_comm=True,
        contiguous_gradients=True,
    ),
)
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
