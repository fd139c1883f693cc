# COCO-WholeBody with persons cut out at 256x192, and coordinates as classes of half a pixel.
_base_ = './wholebody_256x192.py'
simcc = dict(
    type='SimCCLabel',
    input_size=(192, 256),
    sigma=(4.9, 5.66),
    simcc_split_ratio=2.0,
    normalize=False,
    use_dark=False,
)
codec = dict(_delete_=True, **simcc)
train_pipeline = _base_.train_pipeline
train_pipeline[6]['encoder'] = simcc
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
