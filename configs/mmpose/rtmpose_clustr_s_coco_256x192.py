"""RTMPose with ClusTR-S on COCO's 17 keypoints, 256x192: mmpose's recipe.

Run: python tools/train.py configs/mmpose/rtmpose_clustr_s_coco_256x192.py --init-from BACKBONE
Schedule: 8 GPUs x 256 = batch 1024; 149,813 persons / 1024 = 147 iterations an epoch, 420 epochs;
    AdamW at 1e-3, the 5e-4 of ../_base_/schedules/wholebody_210e.py at batch 512 (RTMPose's 4e-3 is
    for a convolutional backbone). Another batch size: --auto-scale-lr. The data need
    albumentations.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = 'mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-m_8xb256-420e_coco-256x192.py'
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='ClusTR', arch='small', out_indices=(3,)),
    head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min = 5e-5
