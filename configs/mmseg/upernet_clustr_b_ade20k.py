"""UperNet with ClusTR-B on ADE20K.

Run: python tools/train.py configs/mmseg/upernet_clustr_b_ade20k.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 160,000 iterations x 16 / 20,210 images = 127 epochs. Another
    batch size: --auto-scale-lr.
Expected: none published for this size (small: 49.6 mIoU, paper, not reproduced here).
    It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/upernet_160k.py',
]
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
