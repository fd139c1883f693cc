"""Draws the clusters that a model finds in photographs: a labelled sheet a picture.

    python tools/analysis/clusters.py CONFIG [CHECKPOINT] IMAGE... [--out-dir clusters]
        [--stages 1 2 3] [--blocks -1] [--scales 1 2] [--side 224]

A row is a block. On the left are the centres of its clusters, then for each scale the clusters over
the photograph and how many tokens each holds, and on the right the tokens' weights in their
clusters. CHECKPOINT is a file that ends in .pth or .safetensors; without one the weights are
random, and the clusters are of colours and edges. A folder stands for the images in it.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import MODELS

from clustr_mm.datasets.files import WEIGHT_SUFFIXES, find_images
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import clustr_backbone, load_config
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.visualization import save_picture, show_clusters
from clustr_mm.weights.files import load_pretrained


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="a config whose model's backbone is ClusTR")
    parser.add_argument('paths', nargs='+', metavar='[CHECKPOINT] IMAGE')
    parser.add_argument('--out-dir', default='clusters', metavar='DIR', help='clusters')
    parser.add_argument('--stages', nargs='+', type=int, metavar='N', help='from 1; all')
    parser.add_argument(
        '--blocks', nargs='+', type=int, default=[-1], metavar='N',
        help="of each stage, from 1, or from its end: -1, the last; 0 for all",
    )  # fmt: skip
    parser.add_argument('--scales', nargs='+', type=int, metavar='N', help='from 1; all')
    parser.add_argument(
        '--side', type=int, default=224, metavar='PIXELS',
        help='the shorter side that larger photographs are brought to (224); 0 leaves them',
    )  # fmt: skip
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    add_trust(parser)
    return parser.parse_args(argv)


def out_names(images: Sequence[Path]) -> list[str]:
    """A file name for each image's sheet, no two alike."""
    names: list[str] = []
    for image in images:
        number, name = 1, f'{image.stem}.png'
        while name in names:
            number += 1
            name = f'{image.stem}_{number}.png'
        names.append(name)
    return names


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    cfg = load_config(options.config)
    settings = clustr_backbone(cfg)
    checkpoint = options.paths.pop(0) if options.paths[0].endswith(WEIGHT_SUFFIXES) else None
    images = list(find_images(options.paths))
    if not images:
        raise UserError('no image is given; name files or folders after the config')
    torch.manual_seed(options.seed)
    backbone = MODELS.build({**settings, 'init_cfg': None})
    weights = f'random weights (seed {options.seed})'
    if checkpoint is not None:
        init_cfg = dict(checkpoint=checkpoint, prefix='backbone.')
        load_pretrained(backbone, init_cfg, options.trust_checkpoint)
        weights = os.path.basename(checkpoint)
    backbone.to(options.device).eval()
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    blocks = [] if options.blocks == [0] else options.blocks
    for image, name in zip(images, out_names(images), strict=True):
        try:
            sheet = show_clusters(
                backbone,
                image,
                options.stages,
                blocks,
                options.scales,
                options.side or None,
                f'{image.name}: {Path(options.config).stem}, {weights}',
                preprocessor,
            )
        except OSError as error:
            raise UserError(f'{image} is no image that can be read; leave it out') from error
        path = os.path.join(options.out_dir, name)
        save_picture(np.asarray(sheet), path)
        print(path, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
