# What ClusTR keeps of a PVTv2-B0 that it is converted from. By these commands, one after another:
#   python tools/train.py tools/analysis/studies/_warm_start_teacher.py \
#       --work-dir work_dirs/warm_start/teacher
#   python tools/analysis/warm_start.py work_dirs/warm_start/teacher/epoch_30.pth \
#       data/tiny_imagenet20/train
#   python tools/analysis/compare.py tools/analysis/studies/warm_start.py
# the first and the last with --data-root where the data lie elsewhere. Its val folder is the test.
# It hardly uses the attention of stages 1 to 3: warm_start_tokens.py has a teacher that does.
_base_ = './_backbones.py'
config = 'tools/analysis/studies/_warm_start_recipe.py'
score = 'accuracy/top1'
shape = (96, 96)
seeds = (0, 1, 2)
options = {'train_cfg.max_epochs': 0, 'param_scheduler.0.end': 50}
rows = dict(
    teacher=dict(
        seeds=(0,),
        rate=0.0,
        options={
            'load_from': 'work_dirs/warm_start/teacher/epoch_30.pth',
            'model.backbone': dict(
                _delete_=True, type='TIMMBackbone', model_name='pvt_v2_b0', drop_path_rate=0.05
            ),
        },
    ),
    **{
        f'{name}_0': dict(
            rate=0.0,
            options={**changes, 'load_from': f'work_dirs/warm_start/{name}_{{seed}}.safetensors'},
        )
        for name, changes in _base_.conversions.items()
    },
)
