"""Semantic FPN with ClusTR-B on ADE20K.

Run: python tools/train.py configs/mmseg/semfpn_clustr_b_ade20k.py --init-from BACKBONE
Schedule: 8 GPUs x 4 = batch 32; 40,000 iterations x 32 / 20,210 images = 63 epochs. Another
    batch size: --auto-scale-lr.
Expected: none published for this size (small: 48.0 mIoU, paper, not reproduced here).
    It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/semfpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/semfpn_40k.py',
]
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
train_dataloader = dict(batch_size=4)
