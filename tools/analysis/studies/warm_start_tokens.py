# What ClusTR keeps of a PVTv2-B0 that needs its attention, and how soon it learns the rest. By
# these commands, one after another:
#   python tools/train.py tools/analysis/studies/_warm_start_tokens_teacher.py \
#       --work-dir work_dirs/warm_start_tokens/teacher
#   python tools/analysis/warm_start.py work_dirs/warm_start_tokens/teacher/epoch_16.pth \
#       data/tiny_imagenet20/train --out work_dirs/warm_start_tokens --image-size 128
#   python tools/analysis/compare.py tools/analysis/studies/warm_start_tokens.py
# the first and the last with --data-root where the data lie elsewhere. Rates are chosen on pictures
# held out of train. NAME_0 is without training, NAME_1 after one epoch, NAME_5 after five.
_base_ = './_backbones.py'
config = 'tools/analysis/studies/_warm_start_tokens_recipe.py'
score = 'aAcc'
shape = (128, 128)
seeds = (0, 1, 2)
rates = (1e-4, 3e-4, 1e-3)
rate_search = {}
_epochs = {
    number: {'train_cfg.max_epochs': number, 'param_scheduler.0.end': 20} for number in (0, 1, 5)
}
_teacher = {
    'model.backbone': dict(_base_.pvtv2_b0, out_indices=(1, 2)),
    'load_from': 'work_dirs/warm_start_tokens/teacher/epoch_16.pth',
}
rows = dict(
    teacher=dict(seeds=(0,), rate=0.0, options={**_teacher, **_epochs[0]}),
    # What the same training is worth without any conversion.
    teacher_5=dict(seeds=(0,), rate='full256_5', options={**_teacher, **_epochs[5]}),
    scratch_1=dict(rate=1e-3, options=_epochs[1]),
    scratch_5=dict(rate=1e-3, options=_epochs[5]),
    scratch_16=dict(seeds=(0,), rate=1e-3),
)
for _name, _changes in _base_.conversions.items():
    _start = {**_changes, 'load_from': f'work_dirs/warm_start_tokens/{_name}_{{seed}}.safetensors'}
    # Conversions are alike: of each length one rate for all. Keys and values at random want a high
    # one from the first epoch on.
    _of = _name if _name in ('random_kv', 'mean') else 'full256'
    rows[f'{_name}_0'] = dict(rate=0.0, options={**_start, **_epochs[0]})
    if _name == 'drawn':  # without photographs to convert with there are none to train on
        continue
    rows[f'{_name}_1'] = dict(options={**_start, **_epochs[1]})
    rows[f'{_name}_5'] = dict(options={**_start, **_epochs[5]})
    if _of != _name:
        rows[f'{_name}_1']['rate'] = f'{_of}_1'
    if _name != 'full256':
        rows[f'{_name}_5']['rate'] = 'random_kv_1' if _name == 'random_kv' else 'full256_5'
