# DeepSpeed, ZeRO stage 2: each process keeps a share of the gradients and of the optimizer's two
# moments. Needs the package deepspeed, in a version that has deepspeed.runtime.fp16.onebit, which
# mmengine imports: 0.16 has, 0.19 has not. The schedule's gradient clipping and accumulation go to
# DeepSpeed. A checkpoint is a folder: --resume takes it, and
#   python WORK_DIR/zero_to_fp32.py WORK_DIR OUT --tag iter_1000.pth
# makes weights for test.py of it.
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2))
