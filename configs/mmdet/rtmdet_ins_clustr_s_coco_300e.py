"""RTMDet-Ins with ClusTR-S on COCO: mmdet's recipe of RTMDet-Ins-l.

Run: python tools/train.py configs/mmdet/rtmdet_ins_clustr_s_coco_300e.py --init-from BACKBONE
Schedule: 8 GPUs x 32 = batch 256; 117,266 images / 256 = 459 iterations an epoch, 300 epochs,
    of which the last 20 without mosaics; AdamW at 2e-3, which is the 1e-3 of mmdet's RTMDet with
    Swin at batch 128. Another batch size: --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = 'mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py'
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    # RTMDet's own backbone has learned from BGR; and its images are grey where they are padded.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        _delete_=True, type='ClusTR', arch='small', out_indices=(1, 2, 3), cluster_window=56
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = _base_.param_scheduler
param_scheduler[1].eta_min = 1e-4
auto_scale_lr = dict(base_batch_size=256)
# Without an object in a process's images the mask branch has no gradient, which several processes
# would stop at.
find_unused_parameters = True
