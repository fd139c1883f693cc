"""Top-down pose with ClusTR-S on COCO's 17 keypoints, 256x192: mmpose's PVTv2 recipe.

Run: python tools/train.py configs/mmpose/topdown_clustr_s_coco_256x192.py --init-from BACKBONE
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs;
    Adam at 5e-4, and three deconvolutions on the last map, as PVTv2. Another batch size:
    --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_pvtv2-b2_8xb64-210e_coco-256x192.py'
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='ClusTR', arch='small'))
