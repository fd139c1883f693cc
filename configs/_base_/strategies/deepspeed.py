# DeepSpeed, ZeRO stage 2: each process keeps a share of the gradients and of the optimizer's two
# moments. Needs the package deepspeed with the module deepspeed.runtime.fp16.onebit, which mmengine
# imports: 0.16.9 has it, 0.19.8 has not. The schedule's clipping and accumulation go to DeepSpeed.
# A checkpoint is a folder, which --resume takes; the best one is a single file, for test.py, and
# zero_to_fp32.py in the work folder makes such a file of any other.
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2))
