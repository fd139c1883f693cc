# ClusTR trained on CamVid from pretrained weights, tested with another setting than it was trained
# with: how much hangs on which tokens are grouped. After camvid.py's row clustr_pretrained.
_base_ = './_backbones.py'
config = 'configs/mmseg/semfpn_clustr_pvtb0_camvid.py'
score = 'mIoU'
shape = (180, 240)
seeds = (0, 1, 2)
options = {
    'train_cfg.max_iters': 0,
    'load_from': 'work_dirs/compare/camvid/clustr_pretrained_seed{seed}/iter_800.pth',
}
# These have the same weights by the same names.
names = ('sized', 'k2', 'k9', 'quarter_clusters', 'recluster_never', 'window14', 'window28')
rows = dict(
    clustr=dict(),
    **{name: dict(options=_base_.ablation[name]['options']) for name in names},
)
