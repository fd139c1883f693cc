# ImageNet-1K at 384x384, validated on whole images.
_base_ = './imagenet.py'
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1]['scale'] = 384
test_pipeline[1:3] = [
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic')
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
