# What ClusTR keeps of a PVTv2-B0 that it is converted from. By these commands, one after another:
#   python tools/train.py tools/analysis/studies/_warm_start_teacher.py \
#       --work-dir work_dirs/warm_start/teacher
#   python tools/analysis/warm_start.py work_dirs/warm_start/teacher/epoch_30.pth \
#       data/tiny_imagenet20/train
#   python tools/analysis/compare.py tools/analysis/studies/warm_start.py
# the first and the last with --data-root where the data lie elsewhere. Its val folder is the test;
# rates are chosen on 50 pictures a class held out of train. NAME_0 is without training, NAME_1
# after one epoch, NAME_5 after five.
_base_ = './_backbones.py'
config = 'tools/analysis/studies/_warm_start_recipe.py'
score = 'accuracy/top1'
shape = (96, 96)
seeds = (0, 1, 2)
rates = (1e-4, 3e-4, 1e-3)
rate_search = {}
_epochs = {
    number: {'train_cfg.max_epochs': number, 'param_scheduler.0.end': 50} for number in (0, 1, 5)
}
rows = dict(
    teacher=dict(
        seeds=(0,),
        rate=0.0,
        options={
            'load_from': 'work_dirs/warm_start/teacher/epoch_30.pth',
            'model.backbone': dict(
                _delete_=True, type='TIMMBackbone', model_name='pvt_v2_b0', drop_path_rate=0.05
            ),
            **_epochs[0],
        },
    ),
    scratch_1=dict(rate=1e-3, options=_epochs[1]),
    scratch_5=dict(rate=1e-3, options=_epochs[5]),
    scratch_30=dict(seeds=(0,), rate=1e-3),
)
for _name, _changes in _base_.conversions.items():
    _start = {**_changes, 'load_from': f'work_dirs/warm_start/{_name}_{{seed}}.safetensors'}
    # Conversions are alike: one rate for the three.
    _of = _name if _name in ('random_kv', 'mean') else 'full256'
    rows[f'{_name}_0'] = dict(rate=0.0, options={**_start, **_epochs[0]})
    rows[f'{_name}_1'] = dict(options={**_start, **_epochs[1]})
    rows[f'{_name}_5'] = dict(rate=f'{_of}_1', options={**_start, **_epochs[5]})
    if _of != _name:
        rows[f'{_name}_1']['rate'] = f'{_of}_1'
