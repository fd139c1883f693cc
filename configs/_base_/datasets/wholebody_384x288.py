# COCO-WholeBody with persons cut out at 384x288, and heat maps of a quarter of it.
_base_ = './wholebody_256x192.py'
codec = dict(input_size=(288, 384), heatmap_size=(72, 96), sigma=3)
train_pipeline, val_pipeline = _base_.train_pipeline, _base_.val_pipeline
train_pipeline[5].update(input_size=codec['input_size'])
train_pipeline[6].encoder.update(codec)
val_pipeline[2].update(input_size=codec['input_size'])
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
