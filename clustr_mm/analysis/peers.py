"""Backbones by name: ClusTR with its settings, and those to compare it with.

A peer is a backbone of about ClusTR-S's size, or a user's yardstick: PVTv2-B2 (Wang et al., arXiv
2106.13797), Swin-T (Liu et al., arXiv 2103.14030), ConvNeXt-T (Liu et al., arXiv 2201.03545),
ResNet-50; mmdet's or mmpretrain's, or timm's where those are not installed.
"""

from __future__ import annotations

import ast
from importlib import import_module
from typing import Any

from torch import nn

from clustr_mm.models import ClusTR

_ARCHS = {'clustr_t': 'tiny', 'clustr_s': 'small', 'clustr_b': 'base'}
# Configs in mmdet (ConvNeXt in mmpretrain), and names and further arguments in timm. The rate of
# stochastic depth is the one that mmdet's have, and ClusTR; ResNet has none there.
PEERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'pvtv2_b2': (
        dict(type='PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3]),
        dict(model_name='pvt_v2_b2', drop_path_rate=0.1),
    ),
    'swin_t': (
        dict(type='SwinTransformer'),
        dict(model_name='swin_tiny_patch4_window7_224', drop_path_rate=0.1),
    ),
    'convnext_t': (
        dict(
            type='ConvNeXt',
            arch='tiny',
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
            drop_path_rate=0.1,
        ),
        dict(model_name='convnext_tiny', drop_path_rate=0.1),
    ),
    'resnet50': (
        dict(type='ResNet', depth=50),
        dict(model_name='resnet50', out_indices=(1, 2, 3, 4)),
    ),
}


def parse_setting(text: str) -> dict[str, Any]:
    """Reads a setting of ClusTR.

    Args:
        text: ``'KEY=VALUE'``, several joined by ``+``. A value is a Python literal or else a
            string: ``56``, ``None``, ``(1,4)``, ``window``.

    Returns:
        Values by key.

    Raises:
        ValueError: If it cannot be read, or a key comes twice.
    """
    options: dict[str, Any] = {}
    for part in text.split('+'):
        key, equals, value = part.partition('=')
        if not (key.isidentifier() and equals and value):
            raise ValueError(f'setting is {text!r}; use KEY=VALUE, joined by +')
        if key in options:
            raise ValueError(f'setting {text!r} has {key} twice; leave one')
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def build_backbone(name: str, shape: tuple[int, int]) -> tuple[nn.Module, str]:
    """Builds a backbone with random weights that returns the maps at strides 4 to 32.

    Args:
        name: ``'clustr_s'`` or, with a setting, ``'clustr_s+recluster_every=0'``; or a peer's.
        shape: Height and width of the images; timm's Swin wants to know.

    Returns:
        The backbone, and the library that it is from.

    Raises:
        ValueError: If there is no such backbone, or no library that has it.
    """
    kind, _, setting = name.partition('+')
    if kind in _ARCHS:
        try:
            return ClusTR(_ARCHS[kind], **(parse_setting(setting) if setting else {})), 'clustr_mm'
        except TypeError as error:  # an option that there is not
            raise ValueError(f'model {name}: {error}') from error
    if name not in PEERS:
        raise ValueError(f'model is {name!r}; use one of {", ".join((*_ARCHS, *PEERS))}')
    in_openmmlab, in_timm = PEERS[name]
    library = 'mmpretrain' if name == 'convnext_t' else 'mmdet'
    try:
        backbones = import_module(f'{library}.models.backbones')
        arguments = dict(in_openmmlab)
        return getattr(backbones, arguments.pop('type'))(**arguments), library
    except ImportError as error:  # not installed, or no mmcv with its compiled operators
        reason = f'{library} cannot be imported ({error})'
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f'model {name} is not ours: {reason}, nor timm ({error}); install one of the two'
        ) from error
    size = dict(img_size=shape) if name == 'swin_t' else {}
    arguments = dict(out_indices=(0, 1, 2, 3)) | size | in_timm
    return timm.create_model(features_only=True, **arguments), 'timm'
