"""ViTPose's simple head on ClusTR-S, COCO's 17 keypoints, 256x192: mmpose's recipe.

Run: python tools/train.py configs/mmpose/vitpose_clustr_s_coco_256x192.py --init-from BACKBONE
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs;
    AdamW at 5e-4, 0.8 times that from layer to layer, as ViTPose. Another batch size:
    --auto-scale-lr.
Expected: nothing measured here, and the paper has no such head.
"""

_base_ = (
    'mmpose::body_2d_keypoint/topdown_heatmap/coco/'
    'td-hm_ViTPose-small-simple_8xb64-210e_coco-256x192.py'
)
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='ClusTR', arch='small', out_indices=(3,)),
    neck=dict(scale_factor=8.0),  # the last map is at stride 32, a ViT's at 16
    head=dict(in_channels=512),
)
optim_wrapper = dict(
    constructor='ClusTRLayerDecay', paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8)
)
