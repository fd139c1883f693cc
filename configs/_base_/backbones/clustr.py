# The backbone that every leaf starts from; a leaf names its arch and drop path rate.
model = dict(
    backbone=dict(type='ClusTR', arch='small', out_indices=(0, 1, 2, 3), drop_path_rate=0.1)
)
