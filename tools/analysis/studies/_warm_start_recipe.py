# Twenty classes of Tiny ImageNet, 50 pictures of each class held out of train to choose by.
_base_ = '../../../configs/mmpretrain/clustr_pvtb0_tiny_imagenet20.py'
_held_out = [number for number in range(10_000) if number % 500 >= 450]
_rest = [number for number in range(10_000) if number % 500 < 450]
train_dataloader = dict(batch_size=32, dataset=dict(indices=_rest))
val_dataloader = dict(dataset=dict(data_prefix='train', indices=_held_out))
test_dataloader = dict(dataset=dict(data_prefix='val'))
auto_scale_lr = dict(base_batch_size=32)
