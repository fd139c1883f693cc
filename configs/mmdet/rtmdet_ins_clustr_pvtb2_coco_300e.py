"""RTMDet-Ins with ClusTR from PVTv2-B2 on COCO: mmdet's recipe of RTMDet-Ins-l.

Run: python tools/convert_checkpoint.py
         https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth
         clustr_pvtb2.safetensors --from pvt_v2 --images PHOTOGRAPHS
     python tools/train.py configs/mmdet/rtmdet_ins_clustr_pvtb2_coco_300e.py
         --init-from clustr_pvtb2.safetensors
Schedule: 8 GPUs x 32 = batch 256; 117,266 images / 256 = 459 iterations an epoch, 300 epochs,
    of which the last 20 without mosaics; AdamW at 2e-3, which is the 1e-3 of mmdet's RTMDet with
    Swin at batch 128. Another batch size: --auto-scale-lr.
Expected: nothing measured here. docs/pretrained.md says what the weights are.
"""

_base_ = './rtmdet_ins_clustr_s_coco_300e.py'
model = dict(backbone=dict(arch='pvt_v2_b2'), neck=dict(in_channels=[128, 320, 512]))
