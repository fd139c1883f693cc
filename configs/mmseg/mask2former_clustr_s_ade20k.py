"""Mask2Former with ClusTR-S on ADE20K: mmseg's recipe, which needs mmdet.

Run: python tools/train.py configs/mmseg/mask2former_clustr_s_ade20k.py --init-from BACKBONE
Schedule: 8 GPUs x 2 = batch 16; 160,000 iterations x 16 / 20,210 images = 127 epochs; AdamW at
    1e-4, a tenth of it in the backbone, as Swin. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = ['../_base_/mmseg/mask2former.py', '../_base_/schedules/mask2former_norms.py']
custom_imports = dict(imports=['clustr_mm', 'mmdet.models'])
model = dict(
    backbone=dict(_delete_=True, type='ClusTR', arch='small', drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.backbone_norms}}))
