# The backbone that every leaf starts from; a leaf names its arch and drop path rate.
custom_imports = dict(imports=['clustr_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(type='ClusTR', arch='small', out_indices=(0, 1, 2, 3), drop_path_rate=0.1)
)
