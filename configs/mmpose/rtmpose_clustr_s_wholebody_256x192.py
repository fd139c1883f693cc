"""RTMPose with ClusTR-S on COCO-WholeBody, 256x192: mmpose's recipe.

Run: python tools/train.py configs/mmpose/rtmpose_clustr_s_wholebody_256x192.py --init-from BACKBONE
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 270 epochs;
    AdamW at 5e-4 as ../_base_/schedules/wholebody_210e.py (RTMPose's 4e-3 is for a convolutional
    backbone). Another batch size: --auto-scale-lr. The data need albumentations.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = (
    'mmpose::wholebody_2d_keypoint/rtmpose/coco-wholebody/'
    'rtmpose-m_8xb64-270e_coco-wholebody-256x192.py'
)
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='ClusTR', arch='small', out_indices=(3,)),
    head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min = 2.5e-5
