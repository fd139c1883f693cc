# Backbones for the rows NAME_pretrained of camvid.py, lsp.py and nuclei.py: ten epochs of twenty
# classes of Tiny ImageNet, one budget, rate and seed for all. They are left in the work folder. The
# row clustr_converted starts from what this makes of PVTv2's, afterwards:
#   python tools/convert_checkpoint.py work_dirs/compare/pretrain/pvtv2_b0_seed0/epoch_10.pth \
#       work_dirs/compare/pretrain/clustr_from_pvtv2_b0.safetensors --from pvt_v2 \
#       --images data/tiny_imagenet20/train --num-images 256 --calibrate full --image-size 96
_base_ = './_backbones.py'
config = 'configs/mmpretrain/clustr_pvtb0_tiny_imagenet20.py'
score = 'accuracy/top1'
shape = (96, 96)
seeds = (0,)
options = {
    'train_cfg.max_epochs': 10,
    'train_dataloader.batch_size': 32,
    'model.backbone.drop_path_rate': 0.0,
}
rows = _base_.classifiers
