# Instance masks of nuclei from scratch: ClusTR beside other backbones.
_base_ = './_backbones.py'
config = 'configs/mmdet/mask_rcnn_clustr_pvtb0_nuclei.py'
score = 'coco/segm_mAP'
factor = 100
shape = (256, 256)
seeds = (0, 1, 2)
rates = (5e-4, 1e-3, 2e-3)
rate_search = {'train_cfg.max_epochs': 1}
rows = dict(
    **_base_.peers,
    blind=dict(options={'model.backbone': dict(_base_.blind, size=shape)}),
    mean=_base_.ablation['mean'],
)
