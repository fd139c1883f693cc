"""PVTv2 with random weights, and pictures that are like photographs."""

import re

import numpy as np
import pytest
import torch

from clustr_mm.datasets.mini.scenes import make_scene
from clustr_mm.models.clustr import ARCHS

HALF = dict(ARCHS['pvt_v2_b0'], embed_dims=(16, 32, 80, 128))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that matter, where a fresh network's attention is nearly a plain mean."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if value.dim() > 1:
            drawn = drawn / value[0].numel() ** 0.5
        elif name.endswith('weight'):
            drawn = 1 + 0.2 * drawn
        else:
            drawn = 0.1 * drawn
        value.data.copy_(drawn)
    return module.eval()


def of_mmdet(depths=(2, 2, 2, 2), width=32):
    """mmdet's PVTv2, the eps of its norms those of the original."""
    backbones = pytest.importorskip('mmdet.models.backbones')
    network = randomised(
        backbones.PyramidVisionTransformerV2(embed_dims=width, num_layers=list(depths))
    )
    for embed, blocks, _ in network.layers:
        embed.norm.eps = 1e-5
        for block in blocks:
            if hasattr(block.attn, 'norm'):
                block.attn.norm.eps = 1e-5
    return network


def original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """mmdet's weights by the original's names, with a head of 10 classes."""
    named = {}
    for key, value in state.items():
        stage, part, rest = re.fullmatch(r'layers\.(\d)\.(\d)\.(.*)', key).groups()
        s = int(stage) + 1
        if part == '0':
            named[f'patch_embed{s}.{rest.replace("projection", "proj")}'] = value
        elif part == '2':
            named[f'norm{s}.{rest}'] = value
        else:
            rest = rest.replace('ffn.layers.0', 'mlp.fc1').replace('ffn.layers.4', 'mlp.fc2')
            rest = rest.replace('ffn.layers.1', 'mlp.dwconv.dwconv')
            rest = rest.replace('attn.attn.out_proj', 'attn.proj')
            if '.fc' in rest and rest.endswith('weight'):
                value = value.flatten(1)
            if 'in_proj' in rest:
                kind, third = rest.rpartition('_')[2], len(value) // 3
                named[f'block{s}.{rest[0]}.attn.q.{kind}'] = value[:third]
                named[f'block{s}.{rest[0]}.attn.kv.{kind}'] = value[third:]
            else:
                named[f'block{s}.{rest}'] = value
    generator = torch.Generator().manual_seed(1)
    named['head.weight'] = torch.randn(10, len(state['layers.3.2.weight']), generator=generator)
    return named | {'head.bias': torch.randn(10, generator=generator)}


def scenes(count: int, size: int = 96, start: int = 0) -> torch.Tensor:
    drawn = [make_scene(0, 'train', start + i, (size, size)).image for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 64 - 2
