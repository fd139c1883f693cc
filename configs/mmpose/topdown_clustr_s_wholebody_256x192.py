"""Top-down whole-body pose with ClusTR-S on COCO-WholeBody, persons at 256x192.

Run: python tools/train.py configs/mmpose/topdown_clustr_s_wholebody_256x192.py --init-from BACKBONE
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs.
    Another batch size: --auto-scale-lr.
Expected: 59.4 AP, 69.7 AR (paper, not reproduced here; it names no input size).
    It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/topdown_heatmap.py',
    '../_base_/datasets/wholebody_256x192.py',
    '../_base_/schedules/wholebody_210e.py',
]
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1),
    head=dict(decoder={{_base_.codec}}),
)
