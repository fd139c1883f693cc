# The teacher of warm_start.py: PVTv2-B0 by ClusTR's own recipe.
_base_ = './_warm_start_recipe.py'
model = dict(
    backbone=dict(_delete_=True, type='TIMMBackbone', model_name='pvt_v2_b0', drop_path_rate=0.05)
)
