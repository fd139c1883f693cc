"""Draws the clusters that a model finds in photographs: a labelled sheet a picture.

    python tools/analysis/clusters.py CONFIG [CHECKPOINT] IMAGE... [--out-dir clusters]
        [--stages 1 2 3] [--blocks -1] [--scales 1 2] [--side 224]

A row is a block. On the left are the centres of its clusters, then for each scale the clusters over
the photograph and how many tokens each holds, and on the right the tokens' weights in their
clusters. CHECKPOINT is a file that ends in .pth or .safetensors; without one the weights are
random, and the clusters are of colours and edges. A folder stands for the images in it. Images are
read as the config's test pipeline reads them.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import MODELS
from rich.progress import track

from clustr_mm.datasets.files import WEIGHT_SUFFIXES, find_images
from clustr_mm.datasets.pixels import rgb_or_bands
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import clustr_backbone, load_config
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.engine.pictures import image_loader
from clustr_mm.visualization import show_clusters
from clustr_mm.weights.files import load_strictly, read_checkpoint, state_dict_of


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
        state_dict = state_dict_of(
            read_checkpoint(checkpoint, trust=options.trust_checkpoint), checkpoint
        )
        load_strictly(backbone, state_dict, 'backbone.', checkpoint)
        weights = os.path.basename(checkpoint)
    backbone.to(options.device).eval()
    load = image_loader(cfg)
    os.makedirs(options.out_dir, exist_ok=True)
    taken: set[Path] = set()
    for image in track(images, 'Drawing', disable=not sys.stdout.isatty()):
        sheet = show_clusters(
            backbone,
            rgb_or_bands(load(str(image))),
            options.stages,
            [] if options.blocks == [0] else options.blocks,
            options.scales,
            options.side or None,
            f'{image.name}: {Path(options.config).stem}, {weights}',
            cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor'),
        )
        path, number = Path(options.out_dir, f'{image.stem}.png'), 1
        while path in taken:  # images of one name, from several folders
            number += 1
            path = path.with_name(f'{image.stem}_{number}.png')
        taken.add(path)
        sheet.save(path)
        print(path, flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
