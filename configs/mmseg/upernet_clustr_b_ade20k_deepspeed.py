"""UperNet with ClusTR-B on ADE20K with DeepSpeed's ZeRO: gradients and optimizer are shared out.

Run: tools/dist_train.sh configs/mmseg/upernet_clustr_b_ade20k_deepspeed.py 8 --init-from BACKBONE
Schedule: upernet_clustr_b_ade20k.py's.
Expected: what is expected without DeepSpeed. Testing takes the best checkpoint, a single file; of
    any other, a folder, zero_to_fp32.py beside it makes one.
"""

_base_ = ['./upernet_clustr_b_ade20k.py', '../_base_/strategies/deepspeed.py']
