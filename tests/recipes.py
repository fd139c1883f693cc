"""What the tests of the configs share."""

from mmengine.optim import build_optim_wrapper
from torch import nn

# Leaves of others' heads, for the bodies 's' and 'pvtb2'.
HEADS = (
    'mmdet/retinanet_clustr_{}_coco_1x',
    'mmdet/cascade_mask_rcnn_clustr_{}_coco_3x',
    'mmdet/rtmdet_ins_clustr_{}_coco_300e',
    'mmdet/dino_clustr_{}_coco_12e',
    'mmdet/mask2former_clustr_{}_coco_50e',
    'mmdet/mask2former_clustr_{}_coco_panoptic_50e',
    'mmdet/panoptic_fpn_clustr_{}_coco_1x',
    'mmseg/segformer_clustr_{}_ade20k',
    'mmseg/mask2former_clustr_{}_ade20k',
    'mmseg/upernet_clustr_{}_cityscapes',
    'mmpose/topdown_clustr_{}_coco_256x192',
    'mmpose/rtmpose_clustr_{}_coco_256x192',
    'mmpose/rtmpose_clustr_{}_wholebody_256x192',
    'mmpose/vitpose_clustr_{}_coco_256x192',
    'mmpretrain/clustr_{}_imagenet_384',
    'mmpretrain/clustr_{}_layer_decay_imagenet',
)


def is_head(path):
    """Whether a leaf is one of these."""
    name = f'{path.parent.name}/{path.stem}'
    return name in {head.format(body) for head in HEADS for body in ('s', 'pvtb2')}


def is_small(path):
    """Whether a leaf is its own recipe, for a data set of hundreds or thousands of pictures."""
    return path.stem.endswith(('_mini', '_camvid', '_nuclei', '_lsp', '_tiny_imagenet20'))


def assert_decay_spares(cfg, model, norms=True, biases=False):
    """Builds the config's optimizer: it decays all parameters but those of norms, or all biases."""
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    full = cfg.optim_wrapper.optimizer.weight_decay
    for module in model.modules():
        norm = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            spared = (norms and norm) or (biases and name == 'bias')
            assert decay[id(parameter)] == (0 if spared else full), (type(module), name)
