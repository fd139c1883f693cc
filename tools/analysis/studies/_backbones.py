# Backbones of the studies, each as what takes the place of a config's `model.backbone`. Stochastic
# depth is off in all: the recipes are too short to overfit, and ResNet has none.
pvtv2_b0 = dict(
    _delete_=True,
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=32,
    num_layers=[2, 2, 2, 2],
    drop_path_rate=0.0,
)
mit_b0 = dict(
    _delete_=True,
    type='mmseg.MixVisionTransformer',
    embed_dims=32,
    num_layers=[2, 2, 2, 2],
    num_heads=[1, 2, 5, 8],
)
resnet18 = dict(_delete_=True, type='mmdet.ResNet', depth=18, norm_eval=False)
