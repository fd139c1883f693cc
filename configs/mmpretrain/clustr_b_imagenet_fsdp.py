"""ClusTR-B on ImageNet-1K with FSDP: the weights and the optimizer are shared out among the GPUs.

Run: tools/dist_train.sh configs/mmpretrain/clustr_b_imagenet_fsdp.py 8
Schedule: clustr_b_imagenet.py's. Of the 16 bytes a parameter that training keeps, each of 8 GPUs
    holds 2: 80 MB of 644.
Expected: the same losses as without FSDP, at every step.
"""

_base_ = ['./clustr_b_imagenet.py', '../_base_/strategies/fsdp.py']
