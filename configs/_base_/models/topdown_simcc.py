# RTMPose's head on the coarsest map: a classification of x and of y for every keypoint.
_base_ = './topdown_pose.py'
model = dict(
    backbone=dict(out_indices=(3,)),
    head=dict(
        type='RTMCCHead',
        in_channels=512,
        input_size=(192, 256),
        in_featuremap_size=(6, 8),
        simcc_split_ratio=2.0,
        final_layer_kernel_size=7,
        gau_cfg=dict(
            hidden_dims=256,
            s=128,
            expansion_factor=2,
            dropout_rate=0.0,
            drop_path=0.0,
            act_fn='SiLU',
            use_rel_bias=False,
            pos_enc=False,
        ),
        loss=dict(type='KLDiscretLoss', use_target_weight=True, beta=10.0, label_softmax=True),
    ),
)
