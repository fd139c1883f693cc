# Segmentation of CamVid from scratch: ClusTR beside other backbones, and its body with another
# attention.
_base_ = './_backbones.py'
config = 'configs/mmseg/semfpn_clustr_pvtb0_camvid.py'
score = 'mIoU'
shape = (180, 240)
seeds = (0, 1, 2)
rates = (1e-3, 2e-3, 4e-3)
rate_search = {'train_cfg.max_iters': 400}
rows = dict(
    **_base_.peers,
    clustr_converted=dict(init_from=_base_.pretrained['converted']),
    mit_b0=dict(options={'model.backbone': _base_.mit_b0}),
    blind=dict(options={'model.backbone': dict(_base_.blind, size=shape)}),
    **_base_.ablation,
)
