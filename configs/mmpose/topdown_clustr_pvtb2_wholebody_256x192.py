"""Top-down whole-body pose with ClusTR from PVTv2-B2 on COCO-WholeBody, persons at 256x192.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmpose/topdown_clustr_pvtb2_wholebody_256x192.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 64 = batch 512; 149,813 persons / 512 = 293 iterations an epoch, 210 epochs.
    Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = [
    '../_base_/models/topdown_heatmap.py',
    '../_base_/datasets/wholebody_256x192.py',
    '../_base_/schedules/wholebody_210e.py',
]
model = dict(
    backbone=dict(arch='pvt_v2_b2', drop_path_rate=0.1),
    head=dict(decoder={{_base_.codec}}),
    neck=dict(
        necks=[
            dict(type='FPN', in_channels=[64, 128, 320, 512], out_channels=256, num_outs=4),
            dict(type='FeatureMapProcessor', select_index=0),
        ]
    ),
)
