# Pose on LSP from scratch: ClusTR beside other backbones, and its body with another attention.
_base_ = './_backbones.py'
config = 'configs/mmpose/topdown_clustr_pvtb0_lsp.py'
score = 'tPCK'
factor = 100
shape = (192, 144)
seeds = (0, 1, 2)
rates = (5e-4, 1e-3, 2e-3)
rate_search = {'train_cfg.max_epochs': 2}
pvtv2_b0 = {'model.backbone': _base_.pvtv2_b0}
resnet18 = {
    'model.backbone': _base_.resnet18,
    'model.neck.necks.0.in_channels': [64, 128, 256, 512],
}
rows = dict(
    clustr=dict(),
    pvtv2_b0=dict(options=pvtv2_b0),
    resnet18=dict(options=resnet18),
    clustr_pretrained=dict(init_from=_base_.pretrained['clustr']),
    pvtv2_b0_pretrained=dict(options=pvtv2_b0, init_from=_base_.pretrained['pvtv2_b0']),
    resnet18_pretrained=dict(options=resnet18, init_from=_base_.pretrained['resnet18']),
    mit_b0=dict(options={'model.backbone': _base_.mit_b0}),
    blind=dict(options={'model.backbone': dict(_base_.blind, size=shape)}),
    **_base_.ablation,
)
