# FSDP: each process keeps a share of every weight, its gradient and the optimizer's two moments,
# 16 bytes / processes a parameter instead of 16, and gathers a stage's weights when it runs. The
# checkpoints are those of a run without it. Any leaf takes this as one more _base_, or
# --cfg-options strategy.type=StrictFSDPStrategy; tools/dist_train.sh starts it.
# model_wrapper takes FSDP's arguments: sharding_strategy='SHARD_GRAD_OP' keeps the weights gathered
# between forward and backward, mixed_precision=dict(param_dtype='bfloat16') computes in half the
# bits.
strategy = dict(type='StrictFSDPStrategy', model_wrapper=dict(type='MMFullyShardedDataParallel'))
