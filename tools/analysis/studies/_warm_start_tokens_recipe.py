# Ten of the twenty classes, at 128 pixels, said by every token of stages 2 and 3: what a token gets
# by convolutions there is a part of the picture, so the rest has to come by attention. Of a class
# 225 pictures to train on, 50 held out to choose by, and the 50 of val to test. Stage 3 is scored.
_base_ = [
    '../../../configs/_base_/models/segmentor.py',
    '../../../configs/_base_/datasets/tiny_imagenet20.py',
    '../../../configs/_base_/runtimes/mmseg.py',
]
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, 'clustr_mm.analysis.every_pixel'],
    allow_failed_imports=False,
)
_head = dict(
    type='FCNHead',  # a 1 x 1 convolution of each token
    num_convs=0,
    kernel_size=1,
    concat_input=False,
    dropout_ratio=0.0,
    num_classes=10,
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='pvt_v2_b0', out_indices=(1, 2), drop_path_rate=0.0),
    decode_head=dict(_head, in_channels=160, channels=160, in_index=1),
    auxiliary_head=dict(_head, in_channels=64, channels=64, in_index=0),
)
_pack = dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape'))
_enlarge = dict(type='mmpretrain.ResizeEdge', scale=128, interpolation='bicubic')  # no label map
_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.RandomCrop', crop_size=64, padding=6, padding_mode='reflect'),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    _enlarge,
    dict(type='LabelEveryPixel'),
    _pack,
]
_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LabelEveryPixel'),
    _enlarge,
    _pack,
]
_held_out = [number for number in range(5_000) if number % 500 >= 450]
_rest = [number for number in range(0, 5_000, 2) if number % 500 < 450]
_data = 'mmpretrain.CustomDataset'
train_dataloader = dict(
    batch_size=32, dataset=dict(type=_data, indices=_rest, pipeline=_train_pipeline)
)
val_dataloader = dict(
    dataset=dict(type=_data, data_prefix='train', indices=_held_out, pipeline=_test_pipeline)
)
test_dataloader = dict(dataset=dict(type=_data, indices=500, pipeline=_test_pipeline))
val_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type='ResumableEpochLoop', max_epochs=16, val_interval=4)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, save_best='aAcc'),
)
auto_scale_lr = dict(base_batch_size=32)
