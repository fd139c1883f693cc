"""A ClusTR that is small enough for a test, with everything the published variants have."""

NARROW = dict(
    embed_dims=(16, 32, 48, 64),
    depths=(1, 2, 3, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(2, 2, 2, 2),
    reductions=(8, 4, 2, 1),
)
