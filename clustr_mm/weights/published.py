"""The published network's key names, and ours.

The authors' classification code names its parameters ``patch_embed{s}.proj``, ``block{s}.{i}.attn.
kv1`` and so on, s = 1..4; ours are ``stages.{s - 1}.patch_embed.proj``, ``stages.{s - 1}.blocks.
{i}.attn.kvs.0``. (Names: golden/README.md and the keys file beside it; no published code was used.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clustr_mm.models.clustr import ARCHS, ClusTR
from clustr_mm.weights.files import CheckpointError

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
    renamed: dict[str, Tensor] = {}
    published: dict[str, str] = {}  # our key to the published one
    unmatched = []
    for key, value in state_dict.items():
        ours = f'head.fc.{key[5:]}' if key in ('head.weight', 'head.bias') else rename(key)
        if ours is None:
            unmatched.append(key)
            continue
        ours = ours if ours.startswith('head.') else f'backbone.{ours}'
        renamed[ours] = value
        published[ours] = key

    candidates = list(ARCHS) if arch is None else [arch]
    expected = {i: _expected_shapes(a) for i, a in enumerate(candidates)}

    def misfit(i: int) -> int:
        shapes = expected[i]
        both = shapes.keys() & renamed.keys()
        return len(shapes.keys() ^ renamed.keys()) + sum(
            shapes[key] is not None and tuple(renamed[key].shape) != shapes[key] for key in both
        )

    best = min(expected, key=misfit)
    shapes = expected[best]
    unmatched += [published[key] for key in renamed if key not in shapes]
    missing = [key for key in shapes if key not in renamed]
    wrong = [
        f'{published[key]} is {tuple(renamed[key].shape)}, not {shapes[key]}'
        for key in shapes.keys() & renamed.keys()
        if shapes[key] is not None and tuple(renamed[key].shape) != shapes[key]
    ]
    if unmatched or missing or wrong:
        parts = [
            f'{len(names)} {what}: {", ".join(sorted(names))}'
            for what, names in (
                ('keys of the source have no place', unmatched),
                ('keys of ours have no source', missing),
                ('shapes differ', wrong),
            )
            if names
        ]
        raise CheckpointError(
            f'these are not the published weights of arch {candidates[best]!r} with a head '
            f'({"; ".join(parts)}); give a whole published state dict, or its variant by --arch'
        )
    return candidates[best], renamed


def _expected_shapes(arch: str | Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """Our keys with their shapes; None for the head, whose number of classes is free."""
    backbone = ClusTR(arch=arch)
    shapes: dict[str, tuple[int, ...] | None] = {
        f'backbone.{key}': tuple(value.shape) for key, value in backbone.state_dict().items()
    }
    shapes |= {'head.fc.weight': None, 'head.fc.bias': None}
    return shapes
