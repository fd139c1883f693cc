# Classification of twenty classes of Tiny ImageNet from scratch: ClusTR beside other backbones. Its
# val folder is the test; rates are chosen on a tenth of train.
_base_ = ['./_backbones.py', '../../../configs/_base_/datasets/tiny_imagenet20.py']
config = 'configs/mmpretrain/clustr_pvtb0_tiny_imagenet20.py'
score = 'accuracy/top1'
shape = (96, 96)
seeds = (0, 1, 2)
rates = (5e-4, 1e-3, 2e-3)
options = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 16,
    'param_scheduler.0.end': 50,
    'model.backbone.drop_path_rate': 0.0,
}
tenths = [
    dict(
        _delete_=True,
        type='KFoldDataset',
        fold=0,
        num_splits=10,
        test_mode=test_mode,
        seed=0,
        dataset=dict(
            type='CustomDataset',
            data_root=_base_.data_root,
            data_prefix='train',
            pipeline=pipeline,
        ),
    )
    for test_mode, pipeline in ((False, _base_.train_pipeline), (True, _base_.test_pipeline))
]
rate_search = {
    'train_dataloader.dataset': tenths[0],
    'val_dataloader.dataset': tenths[1],
}
rows = dict(
    **_base_.classifiers,
    blind=dict(
        options={
            'model.backbone': dict(_base_.blind, size=shape, channels=(256,), strides=(32,)),
        }
    ),
    mean=_base_.ablation['mean'],
)
