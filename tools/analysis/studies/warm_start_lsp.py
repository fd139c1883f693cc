# What a pose model with PVTv2-B0 keeps when its backbone becomes ClusTR's, without any training.
# After lsp.py's row pvtv2_b0_pretrained:
#   python tools/analysis/warm_start.py \
#       'work_dirs/compare/lsp/pvtv2_b0_pretrained_seed{seed}/epoch_4.pth' \
#       data/lsp/images/train --out work_dirs/warm_start_lsp --image-size 192 --leave-out 0
_base_ = './_backbones.py'
config = 'configs/mmpose/topdown_clustr_pvtb0_lsp.py'
score = 'tPCK'
factor = 100
shape = (192, 144)
seeds = (0, 1, 2)
options = {'train_cfg.max_epochs': 0}
teacher = 'work_dirs/compare/lsp/pvtv2_b0_pretrained_seed{seed}/epoch_4.pth'
made = 'work_dirs/warm_start_lsp/{name}_{{seed}}.safetensors'
rows = dict(
    teacher=dict(options={'model.backbone': _base_.pvtv2_b0, 'load_from': teacher}),
    **{
        name: dict(options={**changes, 'load_from': made.format(name=name)})
        for name, changes in _base_.conversions.items()
    },
)
