"""Top-down whole-body pose with ClusTR-S and a SimCC head (RTMPose's) on COCO-WholeBody, 256x192.

Run: python tools/train.py configs/mmpose/topdown_clustr_s_simcc_wholebody_256x192.py --init-from
    BACKBONE
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs.
    Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = [
    '../_base_/models/topdown_simcc.py',
    '../_base_/datasets/wholebody_256x192_simcc.py',
    '../_base_/schedules/wholebody_210e.py',
]
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1),
    head=dict(decoder={{_base_.codec}}),
)
