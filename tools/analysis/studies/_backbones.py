# Backbones of the studies, each as what takes the place of a config's `model.backbone`, and the
# rows of the ablation. Stochastic depth is off in all: the recipes are too short to overfit, and
# ResNet has none.
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
# What pretrain.py leaves, and what is converted from it.
pretrained = dict(
    clustr='work_dirs/compare/pretrain/clustr_seed0/epoch_10.pth',
    pvtv2_b0='work_dirs/compare/pretrain/pvtv2_b0_seed0/epoch_10.pth',
    resnet18='work_dirs/compare/pretrain/resnet18_seed0/epoch_10.pth',
    converted='work_dirs/compare/pretrain/clustr_from_pvtv2_b0.safetensors',
)
variant = 'clustr_mm.analysis.variants.ClusTRVariant'
blind = dict(_delete_=True, type='clustr_mm.analysis.variants.BlindBackbone')
body = dict(
    _delete_=True,
    embed_dims=(32, 64, 160, 256),
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 5, 8),
    mlp_ratios=(8, 8, 4, 4),
)
# ClusTR and its peers, from random weights and from pretrained ones, where the neck is an FPN.
_pvtv2_b0 = {'model.backbone': pvtv2_b0}
_resnet18 = {'model.backbone': resnet18, 'model.neck.in_channels': [64, 128, 256, 512]}
peers = dict(
    clustr=dict(),
    pvtv2_b0=dict(options=_pvtv2_b0),
    resnet18=dict(options=_resnet18),
    clustr_pretrained=dict(init_from=pretrained['clustr']),
    pvtv2_b0_pretrained=dict(options=_pvtv2_b0, init_from=pretrained['pvtv2_b0']),
    resnet18_pretrained=dict(options=_resnet18, init_from=pretrained['resnet18']),
)
# The same as classifiers.
classifiers = dict(
    clustr=dict(),
    pvtv2_b0=dict(
        options={
            'model.backbone': dict(pvtv2_b0, out_indices=(3,)),
            # mmdet's networks return a list, which mmpretrain's own pooling does not take.
            'model.neck.type': 'mmpose.GlobalAveragePooling',
        }
    ),
    resnet18=dict(
        options={
            'model.backbone': dict(resnet18, out_indices=(3,)),
            'model.head.in_channels': 512,
        }
    ),
)
# ClusTR with one thing changed, at ClusTR's rate.
ablation = {
    **{
        name: dict(
            rate='clustr',
            options={'model.backbone.type': variant, 'model.backbone.attention': name},
        )
        for name in ('dense', 'grid', 'random', 'kmeans', 'balanced', 'sized', 'mean')
    },
    **{
        name: dict(rate='clustr', options={f'model.backbone.{key}': value})
        for name, key, value in (
            ('one_scale', 'scales', (1,)),
            ('three_scales', 'scales', (1, 4, 16)),
            ('k2', 'k', 2),
            ('k9', 'k', 9),
            ('quarter_clusters', 'arch', dict(body, reductions=(16, 8, 4, 1))),
            ('four_times_clusters', 'arch', dict(body, reductions=(4, 2, 1, 1))),
            ('recluster_never', 'recluster_every', 0),
            ('window14', 'cluster_window', 14),
            ('window28', 'cluster_window', 28),
        )
    },
}
# What tools/analysis/warm_start.py makes of a PVTv2, by name: what each changes of ClusTR.
conversions = {
    **{name: {} for name in ('none', 'drawn', 'sigma32', 'full256', 'random_kv')},
    'mean': {'model.backbone.type': variant, 'model.backbone.attention': 'mean_but_last'},
}
