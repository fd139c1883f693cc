"""UperNet with ClusTR-S on ADE20K.

Run: python tools/train.py configs/mmseg/upernet_clustr_s_ade20k.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 160,000 iterations x 16 / 20,210 images = 127 epochs. Another
    batch size: --auto-scale-lr.
Expected: 49.6 mIoU (paper, not reproduced here).
    It assumes a backbone pretrained on ImageNet-1K; none is public.
"""

_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/upernet_160k.py',
]
model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
