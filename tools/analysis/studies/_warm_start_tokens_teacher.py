# The teacher of warm_start_tokens.py: PVTv2-B0.
_base_ = './_warm_start_tokens_recipe.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        out_indices=(1, 2),
        drop_path_rate=0.0,
    )
)
find_unused_parameters = True  # stage 4
