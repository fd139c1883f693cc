"""The published network's key names, and ours.

The authors' classification code names its parameters ``patch_embed{s}.proj``, ``block{s}.{i}.attn.
kv1`` and so on, s = 1..4; ours are ``stages.{s - 1}.patch_embed.proj``, ``stages.{s - 1}.blocks.
{i}.attn.kvs.0``. (Names: golden/README.md and the keys file beside it; no published code was used.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clustr_mm.models.clustr import ClusTR
from clustr_mm.weights.files import CheckpointError

_PUBLISHED = ('tiny', 'small', 'base')
# Published name, our name; every dot outside of brackets stands for itself.
_RULES = [
    (r'patch_embed(\d)\.(proj|norm)', r'stages.{s}.patch_embed.\2'),
    (r'block(\d)\.(\d+)\.(norm1|norm2)', r'stages.{s}.blocks.\2.\3'),
    (r'block(\d)\.(\d+)\.attn\.(q|kv|proj)', r'stages.{s}.blocks.\2.attn.\3'),
    (r'block(\d)\.(\d+)\.attn\.kv1', r'stages.{s}.blocks.\2.attn.kvs.0'),
    (r'block(\d)\.(\d+)\.attn\.kv2', r'stages.{s}.blocks.\2.attn.kvs.1'),
    (r'block(\d)\.(\d+)\.attn\.weight_layer', r'stages.{s}.blocks.\2.attn.token_weight'),
    (r'block(\d)\.(\d+)\.mlp\.(fc1|fc2)', r'stages.{s}.blocks.\2.mlp.\3'),
    (r'block(\d)\.(\d+)\.mlp\.dwconv\.dwconv', r'stages.{s}.blocks.\2.mlp.dwconv'),
    (r'norm(\d)', r'stages.{s}.norm'),
]
_PATTERNS = [(re.compile(pattern), ours) for pattern, ours in _RULES]


def rename(key: str) -> str | None:
    """Our name of a published backbone parameter.

    Args:
        key: Such as ``block1.0.attn.kv1.weight``.

    Returns:
        Such as ``stages.0.blocks.0.attn.kvs.0.weight``; None for a key that is not published.
    """
    name, _, parameter = key.rpartition('.')
    for pattern, ours in _PATTERNS:
        if match := pattern.fullmatch(name):
            stage = int(match[1]) - 1
            return f'{match.expand(ours.replace("{s}", str(stage)))}.{parameter}'
    return None


def convert_published(
    state_dict: Mapping[str, Tensor], arch: str | Mapping[str, Any] | None = None
) -> tuple[str | Mapping[str, Any], dict[str, Tensor]]:
    """Turns a published state dict, classification head included, into ours.

    Args:
        state_dict: Tensors by published key.
        arch: The variant; None for the published one that fits best.

    Returns:
        The variant, and the tensors, as they are, by our keys: ``backbone.*`` and ``head.fc.*``.

    Raises:
        CheckpointError: If a key is unmatched on either side, or a shape differs.
    """
    ours = {key: _ours(key) for key in state_dict}
    converted = {ours[key]: value for key, value in state_dict.items()}
    theirs = {value: key for key, value in ours.items()}
    candidates = list(_PUBLISHED) if arch is None else [arch]
    problems = [_problems(converted, theirs, backbone_shapes(each)) for each in candidates]
    best = min(range(len(candidates)), key=lambda i: sum(map(len, problems[i].values())))
    if any(problems[best].values()):
        said = [
            f'{len(names)} {what}: {", ".join(sorted(names))}'
            for what, names in problems[best].items()
            if names
        ]
        raise CheckpointError(
            f'these are not the published weights of arch {candidates[best]!r} with a head '
            f'({"; ".join(said)}); give a whole published state dict, or its variant by --arch'
        )
    return candidates[best], converted


def backbone_shapes(arch: str | Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a backbone's weights by key, such as ``backbone.stages.0.norm.weight``."""
    with torch.device('meta'):  # shapes need no memory
        state = ClusTR(arch=arch).state_dict()
    return {f'backbone.{key}': tuple(value.shape) for key, value in state.items()}


def _ours(key: str) -> str:
    """Our whole key for a published one; a key that is not published stays what it is."""
    if key in ('head.weight', 'head.bias'):
        return f'head.fc.{key[5:]}'
    name = rename(key)
    return key if name is None else f'backbone.{name}'


def _problems(
    given: Mapping[str, Tensor], theirs: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """What keeps renamed tensors from being a backbone of these shapes with a head."""
    wanted = [*shapes, 'head.fc.weight', 'head.fc.bias']  # of any number of classes
    return {
        'keys of the source have no place': [theirs[key] for key in given if key not in wanted],
        'keys of ours have no source': [key for key in wanted if key not in given],
        'shapes differ': [
            f'{theirs[key]} is {tuple(given[key].shape)}, not {shape}'
            for key, shape in shapes.items()
            if key in given and given[key].shape != shape
        ],
    }
