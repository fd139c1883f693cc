# Pose on LSP from scratch: ClusTR beside other backbones, and its body with another attention.
_base_ = './_backbones.py'
config = 'configs/mmpose/topdown_clustr_pvtb0_lsp.py'
score = 'tPCK'
factor = 100
shape = (192, 144)
seeds = (0, 1, 2)
rates = (5e-4, 1e-3, 2e-3)
rate_search = {'train_cfg.max_epochs': 2}
rows = dict(
    clustr=dict(),
    pvtv2_b0=dict(options={'model.backbone': _base_.pvtv2_b0}),
    resnet18=dict(
        options={
            'model.backbone': _base_.resnet18,
            'model.neck.necks.0.in_channels': [64, 128, 256, 512],
        }
    ),
    mit_b0=dict(options={'model.backbone': _base_.mit_b0}),
    blind=dict(options={'model.backbone': dict(_base_.blind, size=shape)}),
    **_base_.ablation,
)
