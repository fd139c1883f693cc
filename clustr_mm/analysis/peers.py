"""Backbones to compare with: mmdet's, or timm's where mmdet is not installed.

A peer is a backbone of about ClusTR-S's size, or a user's yardstick: PVTv2-B2 (Wang et al., arXiv
2106.13797), Swin-T (Liu et al., arXiv 2103.14030), ResNet-50.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from clustr_mm.analysis.settings import parse_setting
from clustr_mm.engine.errors import UserError
from clustr_mm.models import ClusTR


@dataclass(frozen=True)
class Peer:
    """A backbone of other libraries.

    Attributes:
        mmdet: Its config in mmdet.
        timm: Its name in timm.
        channels: Of the maps at strides 4, 8, 16 and 32.
    """

    mmdet: Mapping[str, Any]
    timm: str
    channels: tuple[int, ...]


PEERS = {
    'pvtv2_b2': Peer(
        dict(type='PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3]),
        'pvt_v2_b2',
        (64, 128, 320, 512),
    ),
    'swin_t': Peer(
        dict(type='SwinTransformer'), 'swin_tiny_patch4_window7_224', (96, 192, 384, 768)
    ),
    'resnet50': Peer(dict(type='ResNet', depth=50), 'resnet50', (256, 512, 1024, 2048)),
}
_ARCHS = {'clustr_t': 'tiny', 'clustr_s': 'small', 'clustr_b': 'base'}


def clustr_options(name: str) -> dict[str, Any] | None:
    """ClusTR's options that a name stands for.

    Args:
        name: ``'clustr_s'`` or, with a setting, ``'clustr_s+recluster_every=0'``; or a peer's name.

    Returns:
        Arguments of ``ClusTR``; None for a peer.

    Raises:
        UserError: If there is no such backbone.
    """
    kind, _, setting = name.partition('+')
    if kind in _ARCHS:
        return dict(arch=_ARCHS[kind], **parse_setting(setting or 'exact'))
    if name not in PEERS:
        raise UserError(f'model is {name!r}; use one of {", ".join((*_ARCHS, *PEERS))}')
    return None


def build_backbone(name: str, shape: tuple[int, int]) -> tuple[nn.Module, str]:
    """Builds a backbone with random weights that returns the maps at strides 4 to 32.

    Args:
        name: As for ``clustr_options``.
        shape: Height and width of the images; timm's Swin wants to know.

    Returns:
        The backbone, and the library that it is from.

    Raises:
        UserError: If there is no such backbone, or no library that has it.
    """
    options = clustr_options(name)
    if options is not None:
        try:
            return ClusTR(**options), 'clustr_mm'
        except TypeError as error:  # an option that there is not
            raise UserError(f'model {name}: {error}') from error
    peer = PEERS[name]
    reasons = []
    try:
        from mmdet.models import backbones

        config = dict(peer.mmdet)
        return getattr(backbones, config.pop('type'))(**config), 'mmdet'
    except ImportError as error:  # no mmdet, or no mmcv with its compiled operators
        reasons.append(f'mmdet cannot be imported ({error})')
    try:
        import timm

        # The rate that mmdet's have, and ClusTR; ResNet has none there.
        extra: dict[str, Any] = {} if name == 'resnet50' else dict(drop_path_rate=0.1)
        if name == 'swin_t':
            extra['img_size'] = shape
        indices = (1, 2, 3, 4) if name == 'resnet50' else (0, 1, 2, 3)
        model = timm.create_model(peer.timm, features_only=True, out_indices=indices, **extra)
        return model, 'timm'
    except ImportError as error:
        reasons.append(f'nor timm ({error})')
    raise UserError(f'model {name} is not ours: {", ".join(reasons)}; install one of the two')
