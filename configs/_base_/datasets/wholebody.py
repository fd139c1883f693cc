# (Not coco_wholebody.py: mmpose looks for its own file of that name in the working directory.)
# COCO-WholeBody V1.0: 149,813 persons with keypoints in the training images of COCO 2017, 5,000
# validation images, 133 keypoints. The boxes of a validation run are those of the detector of 56.4
# person AP that the field compares with; bbox_file=None takes the annotated ones. A batch of 64 on
# 8 GPUs makes 512. The input size is the codec's, which every leaf names.
# Where mmpose's inferencers look for them.
dataset_type = 'CocoWholeBodyDataset'
data_mode = 'topdown'
data_root = 'data/coco'
bbox_file = 'data/coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json'
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_mode=data_mode,
        ann_file='annotations/coco_wholebody_train_v1.0.json',
        data_prefix=dict(img='train2017/'),
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_mode=data_mode,
        ann_file='annotations/coco_wholebody_val_v1.0.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        bbox_file=bbox_file,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoWholeBodyMetric', ann_file='data/coco/annotations/coco_wholebody_val_v1.0.json'
)
test_evaluator = val_evaluator
