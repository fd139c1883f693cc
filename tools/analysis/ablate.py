"""Sweeps the backbone's settings over photographs: cost, how far the numbers move, the clusters.

    python tools/analysis/ablate.py CONFIG [CHECKPOINT] --images FILE_OR_FOLDER...
        [--size 800 1333] [--settings exact cluster_window=56 recluster_every=0+cluster_window=56]
        [--out DIR] [--train MINI_CONFIG --iterations 300 --seeds 2]

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
- for the maps at strides 4 to 32, by how many per cent they differ at the end of a whole run;
- with --train the score after a short training from scratch, the mean over seeds and their range.

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
from mmengine.config import Config

from clustr_mm.analysis.ablation.compare import Ablation
from clustr_mm.analysis.ablation.settings import (
    PART_SETTINGS,
    backbone_arguments,
    build_settings,
    knob_settings,
)
from clustr_mm.analysis.ablation.tables import cluster_table, cost_table, score_table, write_csv
from clustr_mm.analysis.ablation.training import train_setting
from clustr_mm.analysis.records import circumstances
from clustr_mm.datasets.files import find_images
from clustr_mm.engine.config import check_keys, clustr_backbone, load_config
from clustr_mm.engine.errors import UserError, explained, run_tool
from clustr_mm.engine.options import CfgOptions, Parser, add_trust


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
    training = parser.add_argument_group('training, from scratch, for a score')
    training.add_argument('--train', metavar='CONFIG', help='what to train: a mini config')
    training.add_argument('--iterations', type=int, default=300)
    training.add_argument('--seeds', type=int, default=1, help='runs of each setting')
    training.add_argument(
        '--train-settings', nargs='+', metavar='SETTING', help='only these of --settings'
    )
    training.add_argument('--metric', help='the score; what the config saves the best by')
    training.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='changes to it'
    )
    add_trust(parser)
    options = parser.parse_args(argv)
    for name in ('rounds', 'seeds', 'iterations'):
        if getattr(options, name) < 1:
            raise UserError(f'--{name} is {getattr(options, name)}; use at least 1')
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


def training_of(options: argparse.Namespace) -> tuple[Config, str]:
    """What to train, and the metric that scores it: mistakes show before hours of measuring."""
    cfg = load_config(options.train)
    check_keys(cfg, options.cfg_options or {})
    cfg.merge_from_dict(options.cfg_options or {})
    clustr_backbone(cfg)
    hooks = cfg.get('default_hooks') or {}
    metric = options.metric or (hooks.get('checkpoint') or {}).get('save_best')
    if not isinstance(metric, str) or metric == 'auto':
        raise UserError(
            f'--train {options.train}: the config saves no best checkpoint by one metric; '
            'name the score with --metric'
        )
    # One step and a validation: missing data or another metric show now.
    setting = (options.train_settings or options.settings)[0]
    try:
        with explained(cfg):
            metrics = train_setting(cfg, setting, 1, os.path.join(runs_of(options), 'trial'))
    except FileNotFoundError as error:
        raise UserError(f'--train {options.train}: {error.filename} does not exist') from error
    if metric not in metrics:
        raise UserError(f'--metric {metric}: the validation has {", ".join(sorted(metrics))}')
    return cfg, metric


def runs_of(options: argparse.Namespace) -> str:
    """The folder of the trainings."""
    return os.path.join(options.out or 'work_dirs/ablation', 'runs')


def train(options: argparse.Namespace, cfg: Config, metric: str) -> dict[str, list[float]]:
    """Trains every setting with every seed; the scores by setting."""
    scores: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for setting in options.train_settings or options.settings:
            work_dir = os.path.join(runs_of(options), f'{setting}_{seed}')
            metrics = train_setting(cfg, setting, options.iterations, work_dir, seed)
            scores.setdefault(setting, []).append(float(metrics[metric]))
            done = f'seed {seed}: {setting}: {metric} {scores[setting][-1]:.2f}'
            print(done, file=sys.stderr, flush=True)
    return scores


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
    for setting in options.train_settings or ():
        backbone_arguments(backbone, setting)
    training = training_of(options) if options.train else None
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
    scores: dict[str, list[float]] = {}
    if training:
        facts['train'] = f'{os.path.basename(options.train)}, {options.iterations} iterations'
        scores = train(options, *training)
    said = ', '.join(f'{key} {value}' for key, value in facts.items())
    seconds = 's/image' if device.type == 'cuda' else 'CPU s/image'
    tables = [cost_table(rows, seconds, scores), cluster_table(rows)]
    if scores:
        tables.append(score_table(scores))
    text = '\n'.join([f'{said}\n', *tables])
    print(text, end='')
    if csv_file:
        write_csv(csv_file, rows, facts, scores)
        Path(options.out, 'table.md').write_text(text)


if __name__ == '__main__':
    sys.exit(run_tool(main))
