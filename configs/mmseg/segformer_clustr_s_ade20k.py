"""SegFormer's head on ClusTR-S, ADE20K.

Run: python tools/train.py configs/mmseg/segformer_clustr_s_ade20k.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 160,000 iterations x 16 / 20,210 images = 127 epochs; AdamW at
    6e-5, ten times that in the head, as SegFormer. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = [
    '../_base_/mmseg/segformer.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/upernet_160k.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='ClusTR', arch='small', drop_path_rate=0.1),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'decode_head': dict(lr_mult=10.0)}))
