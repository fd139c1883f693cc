"""Top-down whole-body pose with ClusTR-T on COCO-WholeBody, persons at 256x192.

Run: python tools/train.py configs/mmpose/topdown_clustr_t_wholebody_256x192.py --init-from BACKBONE
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs.
    Another batch size: --auto-scale-lr.
Expected: nothing measured here; the paper has 59.4 AP, without naming model and input size.
    It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/topdown_heatmap.py',
    '../_base_/datasets/wholebody_256x192.py',
    '../_base_/schedules/wholebody_210e.py',
]
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    head=dict(decoder={{_base_.codec}}),
)
