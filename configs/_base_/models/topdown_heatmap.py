# An FPN to one map at stride 4 and a 1x1 convolution to 133 heat maps.
_base_ = './topdown_pose.py'
model = dict(
    neck=dict(
        type='NeckChain',
        necks=[
            dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=256, num_outs=4),
            dict(type='FeatureMapProcessor', select_index=0),
        ],
    ),
    head=dict(
        type='HeatmapHead',
        in_channels=256,
        deconv_out_channels=None,
        loss=dict(type='KeypointMSELoss', use_target_weight=True),
    ),
    test_cfg=dict(flip_mode='heatmap', shift_heatmap=True),
)
# The FPN's convolutions of the coarser maps have nobody to read them.
find_unused_parameters = True
