"""What a model computes for one image, counted whole by torch's FlopCounterMode.

The unit is one MAC: a multiplication and an addition, what papers of this field call a FLOP.
Element-wise work (norms, GELU, softmax, sums of branches, pooling) is not counted, as is usual.

The kinds, with N tokens of C channels, M clusters of a scale, and k, v its keys and values:

    linear       linear layers
    convolution  convolutions
    attention    products of two activations: q k^T and the sum of v, 2 N M C, for the coarsest
                 scale and for dense attention
    fine         the same for all other scales
    clustering   distances of all tokens to each other, N^2 C, for density and for the distance to
                 the nearest denser token (the few tokens that need a second search are left out),
                 and of all tokens to the centres, N M C with the largest M below N
    merge        weighted sums of tokens and of weights, N (C + 1) a scale with M below N
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clustr_mm.models import ClusterAttention, Clusters, ClusTR

KINDS = ('linear', 'convolution', 'attention', 'fine', 'clustering', 'merge')
# What the authors' counter saw: their printed 2.15, 4.8 and 7.48 G are these kinds' sum.
PUBLISHED_KINDS = ('linear', 'convolution', 'attention')


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """What FlopCounterMode must be told to count ClusTR whole, in FLOPs (2 a multiply-add).

    ``FlopCounterMode(custom_mapping=flop_formulas())`` counts any forward pass, on every device and
    backend alike. Without, it counts neither the clustering nor (on a CPU) attention.

    Returns:
        Formulas by operator.

    Raises:
        ValueError: If torch is older than 2.4, for which ours are no operators.
    """
    if not hasattr(torch.library, 'custom_op'):
        raise ValueError(f'torch is {torch.__version__}, where nothing sees our operators; use 2.4')

    def clustering(x: Sequence[int], counts: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, channels = x
        largest = max((count for count in counts if count < tokens), default=0)
        return 2 * batch * tokens * (tokens + largest) * channels

    def merge(x: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, channels = x
        return 2 * batch * tokens * (channels + 1)

    def attention(q: Sequence[int], k: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return 4 * math.prod(q) * k[-2]

    return {
        torch.ops.clustr_mm.dpc_knn: clustering,
        torch.ops.clustr_mm.merge: merge,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    }


def count_macs(model: Any, height: int, width: int) -> dict[str, Counter[str]]:
    """Counts a forward pass of one image, where possible on the meta device: nothing is computed.

    Args:
        model: A backbone, or a model of mmdet, mmseg, mmpose or mmpretrain. Its parameters move to
            the meta device, so it is of no further use. A two-stage detector's heads are counted
            for as many proposals and detections as its ``test_cfg`` allows; auxiliary heads, which
            only training uses, cutting regions out of maps and sampling them at points are not
            counted. Heads of deformable attention (DINO, Mask2Former) read the sizes of maps from
            tensors: such a model runs, with random weights, on the CPU.
        height: Rows of pixels.
        width: Columns of pixels.

    Returns:
        Multiply-adds by part of the model and kind. The parts are ``'stage 1'`` and so on
        (``'backbone'`` for other backbones than ClusTR), ``'neck'`` and ``'heads'``, as far as
        there are such.

    Raises:
        ValueError: If the shape is none, or torch is too old.
    """
    if height < 1 or width < 1:
        raise ValueError(f'the shape is {height} x {width}; use at least 1 x 1')
    device = 'cpu' if _reads_sizes(model) else 'meta'
    if device == 'cpu':
        _draw_parameters(model)
    model.to(device).eval()
    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    fine = 0
    parts: dict[str, Counter[str]] = {}
    started: list[Counter[str]] = []  # the innermost module last

    def now() -> Counter[str]:
        found: Counter[str] = Counter(fine=fine, attention=-fine)
        for operator, flops in counter.get_flop_counts().get('Global', {}).items():
            found[_kind(str(operator))] += flops // 2
        return found

    def begin(*_: Any) -> None:
        started.append(now())

    def end_part(name: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            parts[name] = parts.get(name, Counter()) + (now() - started.pop())

        return end

    def end_attention(_: nn.Module, arguments: tuple[Tensor, Any, Clusters], out: Tensor) -> None:
        nonlocal fine
        x, _, clusters = arguments
        products = (now() - started.pop())['attention']
        fine += products - 2 * x.numel() * clusters.num_clusters[0]

    for module in model.modules():
        if isinstance(module, ClusTR):
            module.crop_padding = False  # it would look for values
        if isinstance(module, ClusterAttention):
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end_attention)
    for name, part in _parts(model).items():
        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end_part(name))
    with torch.no_grad(), counter:
        run_layers(model, torch.zeros(1, 3, height, width, device=device))
    heads = now()
    for found in parts.values():
        heads -= found
    return {name: found for name, found in (*parts.items(), ('heads', heads)) if found}


def _kind(operator: str) -> str:
    name = operator.split('.')[1]
    if name in ('dpc_knn', 'merge'):
        return 'clustering' if name == 'dpc_knn' else name
    if 'convolution' in name:
        return 'convolution'
    return 'linear' if name in ('mm', 'addmm') else 'attention'


def _parts(model: Any) -> dict[str, nn.Module]:
    backbone = getattr(model, 'backbone', model)
    parts: dict[str, nn.Module] = {'backbone': backbone}
    if isinstance(backbone, ClusTR):
        parts = {f'stage {i}': stage for i, stage in enumerate(backbone.stages, 1)}
    if isinstance(getattr(model, 'neck', None), nn.Module):
        parts['neck'] = model.neck
    return parts


def _reads_sizes(model: Any) -> bool:
    """Whether a model has mmcv's deformable attention, which splits maps by a tensor's values."""
    names = (type(module).__name__ for module in model.modules())
    return 'MultiScaleDeformableAttention' in names


def _draw_parameters(model: Any) -> None:
    """Draws the parameters that have no memory."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.randn(parameter.shape) / 50))


def run_layers(model: Any, images: Tensor) -> None:
    """Runs all of a model's layers once: no targets, losses or suppression, which need values.

    Args:
        model: A backbone, or a model of mmdet, mmseg, mmpose or mmpretrain.
        images: (B, 3, height, width).
    """
    if not hasattr(model, 'backbone'):
        model(images)
        return
    if _reads_sizes(model):
        from mmengine.structures import BaseDataElement  # which other models do without

        shape = tuple(images.shape[2:])
        sample = BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=shape))
        if hasattr(model, 'decode_head'):  # mmseg hands its heads no samples
            model.decode_head(model.extract_feat(images), [sample])
        else:
            model(images, [sample], mode='tensor')
        return
    if not hasattr(model, 'roi_head'):
        model(images, None, mode='tensor')
        return
    maps = model.extract_feat(images)
    model.rpn_head(maps)
    if hasattr(model, 'semantic_head'):
        model.semantic_head(maps)
    roi = model.roi_head
    most = dict(
        bbox=model.test_cfg['rpn']['max_per_img'], mask=model.test_cfg['rcnn']['max_per_img']
    )
    for name, regions in most.items():
        if not getattr(roi, f'with_{name}'):
            continue
        extractors, heads = (
            part if isinstance(part, nn.ModuleList) else [part]
            for part in (getattr(roi, f'{name}_roi_extractor'), getattr(roi, f'{name}_head'))
        )
        for extractor, head in zip(extractors, heads, strict=True):
            size = extractor.roi_layers[0].output_size
            head(images.new_empty(regions, extractor.out_channels, *size))
