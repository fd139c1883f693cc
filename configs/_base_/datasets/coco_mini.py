# The mini data set in COCO's layout, of whose 80 classes it has 7:
#   python tools/make_mini_data.py data/mini/coco --layout coco --train 1500 --val 120 --size 96 96
_base_ = './coco_instance.py'
data_root = 'data/mini/coco'
metainfo = dict(classes=('person', 'sports ball', 'bottle', 'chair', 'book', 'clock', 'vase'))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2]['scale'] = test_pipeline[1]['scale'] = (96, 96)
filter_cfg = dict(filter_empty_gt=True, min_size=1)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root, metainfo=metainfo, filter_cfg=filter_cfg, pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
