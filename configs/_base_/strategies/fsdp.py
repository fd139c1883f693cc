# FSDP: each process keeps a share of every weight, its gradient and the optimizer's two moments
# (16 bytes a parameter, divided by the number of processes), and gathers a stage's weights when it
# runs. The checkpoints are those of a run without it.
# The units are stages or larger, never single blocks: a stage calls its blocks' norms by itself.
# model_wrapper takes FSDP's arguments: sharding_strategy='SHARD_GRAD_OP' keeps the weights gathered
# between forward and backward, mixed_precision=dict(param_dtype='bfloat16') computes in fewer bits.
strategy = dict(type='StrictFSDPStrategy', model_wrapper=dict(use_orig_params=True))
