# What every segmentation model shares: ClusTR, ADE20K's 150 classes, ImageNet's mean and spread.
# Clustering is the paper's: exact, in every block. For crops of 512x512 backbone.recluster_every=0
# takes 0.79 of the backbone's time on a CPU (docs/cost.md).
_base_ = '../backbones/clustr.py'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),  # the training crop
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
