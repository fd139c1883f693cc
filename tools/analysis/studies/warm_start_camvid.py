# What a segmentor with PVTv2-B0 keeps when its backbone becomes ClusTR's, without any training.
# After camvid.py's row pvtv2_b0_pretrained:
#   python tools/analysis/warm_start.py \
#       'work_dirs/compare/camvid/pvtv2_b0_pretrained_seed{seed}/iter_800.pth' \
#       data/camvid/images/train --out work_dirs/warm_start_camvid --image-size 180 --leave-out 0
_base_ = './_backbones.py'
config = 'configs/mmseg/semfpn_clustr_pvtb0_camvid.py'
score = 'mIoU'
shape = (180, 240)
seeds = (0, 1, 2)
options = {'train_cfg.max_iters': 0}
teacher = 'work_dirs/compare/camvid/pvtv2_b0_pretrained_seed{seed}/iter_800.pth'
made = 'work_dirs/warm_start_camvid/{name}_{{seed}}.safetensors'
rows = dict(
    teacher=dict(options={'model.backbone': _base_.pvtv2_b0, 'load_from': teacher}),
    **{
        name: dict(options={**changes, 'load_from': made.format(name=name)})
        for name, changes in _base_.conversions.items()
    },
)
