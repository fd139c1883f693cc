"""Sweeps the backbone's settings over photographs: cost, how far the numbers move, the clusters.

    python tools/analysis/ablate.py CONFIG [CHECKPOINT] --images FILE_OR_FOLDER...
        [--size 800 1333] [--settings exact cluster_window=56 recluster_every=0+cluster_window=56]
        [--out DIR]

A setting says how it differs from the exact global form, whatever the config says: KEY=VALUE, an
argument of ClusTR, several joined by `+`. `reductions=(16,8,4,1)` changes the cluster counts,
`scales=(1,4,16)` the scales (more than the checkpoint has only without one). `grouping=kmeans`,
`grouping=random`, `grouping=grid` and `grouping=dense` put other clusters in place of the density
peaks: k-means, centres at random, cells of a grid, every token by itself.

The first table has, for each setting,
- the multiply-adds of an image, clustering included;
- the time of an image: processor time on a CPU (of one thread by default), device time on a GPU;
- that time as a multiple of the exact form's;
- the peak memory of the forward pass above its input and weights;
- for each stage, by how many per cent the attention's output differs from the exact form's on the
  same tokens: the mean over blocks and images, and the worst in brackets;
- the same from dense attention with the setting's own scales, if `grouping=dense` is among them;
- for the maps at strides 4 to 32, by how many per cent they differ at the end of a whole run.

The second has each stage's clusters at the coarsest scale: their number, the share of all tokens
in the largest, the shares of clusters of one token and of none, and the extent: how far tokens are
from the middle of their cluster, of what they are from the middle of the map.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clustr_mm.analysis.ablation.compare import Ablation
from clustr_mm.analysis.ablation.settings import PART_SETTINGS, build_settings, knob_settings
from clustr_mm.analysis.ablation.tables import cluster_table, cost_table, write_csv
from clustr_mm.analysis.records import circumstances
from clustr_mm.datasets.files import find_images
from clustr_mm.engine.config import clustr_backbone, load_config
from clustr_mm.engine.errors import UserError, run_tool
from clustr_mm.engine.options import Parser, add_trust


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="a config whose model's backbone is ClusTR")
    parser.add_argument(
        'checkpoint', nargs='?', help="weights with keys 'backbone.*'; without one they are random"
    )
    parser.add_argument('--images', nargs='+', required=True, metavar='PATH')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=[800, 1333],
        metavar=('H', 'W'),
        help='the largest that fits in, upright or lying, with its proportions (default 800 1333)',
    )
    parser.add_argument(
        '--settings',
        nargs='+',
        default=[*knob_settings(), 'grouping=random', 'grouping=grid'],
        metavar='SETTING',
        help='`parts` stands for a sweep of every part of the clustering, one change at a time, '
        'made for 224 x 224',
    )
    parser.add_argument('--rounds', type=int, default=1, help='runs of each setting on an image')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    parser.add_argument('--threads', type=int, default=1, help='on a CPU')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--crop', action='store_true', help='cut images to exactly --size, from the middle'
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='also write table.csv (after every image) and table.md there',
    )
    add_trust(parser)
    options = parser.parse_args(argv)
    if options.rounds < 1:
        raise UserError(f'--rounds is {options.rounds}; use at least 1')
    options.settings = [
        each
        for setting in options.settings
        for each in (PART_SETTINGS if setting == 'parts' else (setting,))
    ]
    return options


def load_image(
    path: Path, size: Sequence[int], preprocessor: dict[str, Any], crop: bool = False
) -> torch.Tensor:
    """Loads, resizes and normalises an image as the libraries' pipelines do: (1, 3, h, w)."""
    import mmcv

    image = mmcv.imread(str(path))  # (height, width, 3) uint8, BGR, turned as EXIF says
    if image is None:
        raise UserError(f'--images {path}: not an image that can be read; leave it out')
    if crop:
        scale = max(side / old for side, old in zip(size, image.shape, strict=False))
        image = mmcv.imrescale(image, scale)
        top, left = ((old - side) // 2 for side, old in zip(size, image.shape, strict=False))
        image = image[max(0, top) :, max(0, left) :][: size[0], : size[1]]
    else:
        image = mmcv.imrescale(image, (max(size), min(size)))
    if preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb'):
        image = image[..., ::-1]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1) for key in ('mean', 'std'))
    return ((pixels - mean) / std).contiguous()


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    torch.set_num_threads(options.threads)
    if options.out:
        os.makedirs(options.out, exist_ok=True)
    device = torch.device(options.device)
    cfg = load_config(options.config)
    backbone = clustr_backbone(cfg)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    paths = list(find_images(options.images))
    models = build_settings(
        backbone, options.settings, options.checkpoint, options.seed, options.trust_checkpoint
    )
    ablation = Ablation({name: model.to(device) for name, model in models.items()}, options.rounds)
    facts = dict(
        config=os.path.basename(options.config),
        checkpoint=options.checkpoint or f'random weights (seed {options.seed})',
        images=0,
        size='x'.join(map(str, options.size)) + (', cropped' if options.crop else ''),
        rounds=options.rounds,
        dtype='float32',
        **circumstances(device),
    )
    csv_file = os.path.join(options.out, 'table.csv') if options.out else None
    for number, path in enumerate(paths, 1):
        image = load_image(path, options.size, preprocessor, options.crop)
        shape = ' x '.join(map(str, image.shape[2:]))
        print(f'{number} of {len(paths)}: {path.name}, {shape}', file=sys.stderr, flush=True)
        ablation.add(image.to(device))
        facts['images'] = number
        if csv_file:  # a sweep takes long: what is done outlasts an interruption
            write_csv(csv_file, ablation.rows(), facts)
    rows = ablation.rows()
    said = ', '.join(f'{key} {value}' for key, value in facts.items())
    seconds = 's/image' if device.type == 'cuda' else 'CPU s/image'
    text = '\n'.join([f'{said}\n', cost_table(rows, seconds), cluster_table(rows)])
    print(text, end='')
    if csv_file:
        write_csv(csv_file, rows, facts)
        Path(options.out, 'table.md').write_text(text)


if __name__ == '__main__':
    sys.exit(run_tool(main))
