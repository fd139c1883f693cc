"""Sweeps the backbone's settings over photographs: time, memory, and how far the numbers move.

    python tools/analysis/ablate.py CONFIG [CHECKPOINT] --images FILE_OR_FOLDER...
        [--size 800 1333] [--settings exact cluster_window=56 recluster_every=0+cluster_window=56]

A setting says how it differs from the exact global form, whatever the config says: KEY=VALUE, an
argument of ClusTR, several joined by `+`. `grouping=random`, `grouping=grid` and `grouping=dense`
put other clusters in place of the density peaks: centres at random, cells of a grid, every token
by itself. They are there to compare with: `dense` takes as long as it sounds.

The table has, for each setting,
- the time of an image: processor time on a CPU (of one thread by default), device time on a GPU;
- that time as a multiple of the exact form's;
- the peak memory of the forward pass above its input and weights;
- for each stage, by how many per cent the attention's output differs from the exact form's on the
  same tokens: the mean over blocks and images, and the worst in brackets;
- the same with dense attention in the exact form's place, if it is among the settings;
- for the maps at strides 4 to 32, by how many per cent they differ at the end of a whole run.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from clustr_mm.analysis import Ablation, Row, build_settings, knob_settings
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import load_config

IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    )
    parser.add_argument('--rounds', type=int, default=1, help='runs of each setting on an image')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    parser.add_argument('--threads', type=int, default=1, help='on a CPU')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--csv', metavar='FILE', help='also write the table to this file, after every image'
    )
    return parser.parse_args(argv)


def find_images(paths: Iterable[str]) -> Iterator[Path]:
    """Yields the image files among the paths, and in folders among them, by name."""
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f'--images {path}: no image in this folder; give one that has some')
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f'--images {path}: no such file or folder; check the path')


def load_image(path: Path, size: Sequence[int], preprocessor: dict[str, Any]) -> torch.Tensor:
    """Loads, resizes and normalises an image as the libraries' pipelines do: (1, 3, h, w)."""
    import mmcv

    image = mmcv.imread(str(path))  # (height, width, 3) uint8, BGR, turned as EXIF says
    if image is None:
        raise UserError(f'--images {path}: not an image that can be read; leave it out')
    image = mmcv.imrescale(image, (max(size), min(size)))
    if preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb'):
        image = image[..., ::-1]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1) for key in ('mean', 'std'))
    return ((pixels - mean) / std).contiguous()


def print_table(rows: Sequence[Row], seconds: str) -> None:
    """Prints a Markdown table whose columns line up."""
    stages, maps = range(1, len(rows[0].attention) + 1), range(1, len(rows[0].maps) + 1)
    lines = [
        ['setting', seconds, 'x exact', 'MiB']
        + [f'attention {stage} (%)' for stage in stages]
        + [f'to dense {stage} (%)' for stage in stages if rows[0].to_dense]
        + [f'map {stage} (%)' for stage in maps]
    ]
    for row in rows:
        lines.append(
            [row.setting, f'{row.seconds:.2f}', f'{row.ratio:.2f}']
            + ['-' if row.peak_mib is None else f'{row.peak_mib:.0f}']
            + [
                f'{100 * mean:.1f} ({100 * worst:.1f})'
                for mean, worst in (*row.attention, *(row.to_dense or ()))
            ]
            + [f'{100 * shift:.1f}' for shift in row.maps]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])])
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        print(f'| {" | ".join(cells)} |')


def write_csv(path: str, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Writes a line a setting, with what it was measured on in every line; shifts as fractions."""
    with open(path, 'w', newline='') as file:
        writer = None
        for row in rows:
            line = dict(
                setting=row.setting,
                seconds=f'{row.seconds:.4f}',
                ratio=f'{row.ratio:.4f}',
                peak_mib='' if row.peak_mib is None else f'{row.peak_mib:.1f}',
            )
            for name, shifts in (('attention', row.attention), ('to_dense', row.to_dense or ())):
                for stage, (mean, worst) in enumerate(shifts, 1):
                    line[f'{name}{stage}_mean'] = f'{mean:.5f}'
                    line[f'{name}{stage}_worst'] = f'{worst:.5f}'
            for stage, shift in enumerate(row.maps, 1):
                line[f'map{stage}'] = f'{shift:.5f}'
            line |= facts
            if writer is None:
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(line)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    cfg = load_config(options.config)
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if backbone.get('type') != 'ClusTR':
        raise UserError(f'config {options.config} has no model with the backbone ClusTR; give one')
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    paths = list(find_images(options.images))
    models = build_settings(backbone, options.settings, options.checkpoint, options.seed)
    ablation = Ablation({name: model.to(device) for name, model in models.items()}, options.rounds)
    on_gpu = device.type == 'cuda'
    facts = dict(
        config=os.path.basename(options.config),
        checkpoint=options.checkpoint or f'random weights (seed {options.seed})',
        images=0,
        size='x'.join(map(str, options.size)),
        device=torch.cuda.get_device_name(device) if on_gpu else 'cpu',
        threads='' if on_gpu else options.threads,
        rounds=options.rounds,
        dtype='float32',
        torch=torch.__version__,
    )
    for number, path in enumerate(paths, 1):
        image = load_image(path, options.size, preprocessor)
        shape = ' x '.join(map(str, image.shape[2:]))
        print(f'{number} of {len(paths)}: {path.name}, {shape}', file=sys.stderr, flush=True)
        ablation.add(image.to(device))
        facts['images'] = number
        if options.csv:  # a sweep takes long: what is done outlasts an interruption
            write_csv(options.csv, ablation.rows(), facts)
    print(', '.join(f'{key} {value}' for key, value in facts.items() if value != ''))
    print_table(ablation.rows(), 's/image' if on_gpu else 'CPU s/image')


if __name__ == '__main__':
    sys.exit(run_tool(main))
