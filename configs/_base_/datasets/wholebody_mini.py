# The mini data set in COCO-WholeBody's layout, with all 133 keypoints and the annotated boxes:
#   python tools/make_mini_data.py data/mini/wholebody --layout coco_wholebody --train 1500
#       --val 120 --size 256 256
# UDP's codec keeps fractions of a heat map's cell: a hundredth of a person's height is what a
# fingertip's or an eyelid's tolerance comes to.
_base_ = './wholebody_256x192.py'
data_root = 'data/mini/wholebody'
codec = dict(type='UDPHeatmap', input_size=(144, 192), heatmap_size=(36, 48), sigma=1.5)
codec['_delete_'] = True
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='TopdownAffine', input_size=(144, 192), use_udp=True),
    dict(type='GenerateTarget', encoder={k: v for k, v in codec.items() if k != '_delete_'}),
    dict(type='PackPoseInputs'),
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=(144, 192), use_udp=True),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, bbox_file=None, pipeline=val_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/annotations/coco_wholebody_val_v1.0.json')
test_evaluator = val_evaluator
