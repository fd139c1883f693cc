"""Makes the weights that tools/analysis/studies/warm_start*.py compare, from a trained PVTv2.

    python tools/analysis/warm_start.py TEACHER IMAGES [--out work_dirs/warm_start]

TEACHER is a checkpoint with PVTv2's names, alone or in a model, whose neck and heads are kept;
{seed} in its path stands for the seed. IMAGES is a folder of photographs, or of folders of them, of
which each seed draws its own. The folder --out gets of each seed, as NAME_SEED.safetensors:

  none        converted without any pictures
  drawn       with the divisors of 32 drawn scenes
  sigma32     with the divisors of 32
  full256     with keys and values by least squares, on 256
  random_kv   with keys and values at random
  mean        the values of full256, and their mean over all tokens in the place of attention: for
              ClusTRVariant with attention='mean_but_last'
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clustr_mm.engine.errors import UserError, run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.models import ClusTR
from clustr_mm.weights.files import read_checkpoint, save_checkpoint, state_dict_of
from clustr_mm.weights.photographs import draw_scenes, read_photographs
from clustr_mm.weights.pvt_v2 import from_pvt_v2

NUMBERS = dict(none=0, sigma32=32, full256=256)  # of photographs


def draw(args: argparse.Namespace, count: int, seed: int) -> list[Tensor]:
    """Reads photographs drawn by a seed, none of those that are left out."""
    if not Path(args.images).is_dir():
        raise UserError(f'folder {args.images} does not exist; give one of photographs')
    files = []
    folders = sorted(path for path in Path(args.images).iterdir() if path.is_dir())
    for each in folders or [Path(args.images)]:
        own = sorted(path.resolve() for path in each.rglob('*') if path.is_file())
        files += own[: len(own) - args.leave_out]
    if len(files) < count:
        raise UserError(
            f'{args.images} has {len(files)} pictures beside those left out, not {count}; give more'
        )
    with tempfile.TemporaryDirectory() as links:
        for path in random.Random(seed).sample(files, count):
            Path(links, f'{path.parent.name}_{path.name}').symlink_to(path)
        return read_photographs(links, count, args.image_size)


def with_random_kv(weights: dict[str, Tensor], arch: str, seed: int) -> dict[str, Tensor]:
    """Weights with fresh keys and values of clusters."""
    torch.manual_seed(seed)
    fresh = ClusTR(arch).state_dict()
    return {
        key: fresh[key.removeprefix('backbone.')] if '.attn.kvs.' in key else value
        for key, value in weights.items()
    }


def with_mean(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose values of both scales are one, and without the rest of cluster attention."""
    made: dict[str, Tensor] = {}
    clustered = {key.partition('.kvs.')[0] for key in weights if '.kvs.' in key}
    for key, value in weights.items():
        attention, _, part = key.partition('.attn.')
        attention += '.attn'
        if attention not in clustered or part.startswith('proj.'):
            made[key] = value
        elif part.startswith('kvs.0.'):
            name = part.removeprefix('kvs.0.')
            both = [weights[f'{attention}.kvs.{scale}.{name}'] for scale in (0, 1)]
            made[f'{attention}.kv.{name}'] = torch.stack(both).sum(0).chunk(2)[1]
    return made


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('teacher', help='checkpoint of a PVTv2')
    parser.add_argument('images', help='folder of photographs, or of folders of them')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/warm_start'), metavar='DIR')
    parser.add_argument('--seeds', type=int, nargs='+', default=(0, 1, 2))
    parser.add_argument('--image-size', type=int, default=96, metavar='PIXELS')
    parser.add_argument(
        '--leave-out', type=int, default=50, metavar='N', help="pictures at each folder's end"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        source = args.teacher.replace('{seed}', str(seed))
        teacher = state_dict_of(read_checkpoint(source), source)
        made: dict[str, dict[str, Tensor]] = {}
        for name, count in NUMBERS.items():
            images = draw(args, count, seed) if count else []
            way = 'full' if name == 'full256' else 'sigma'
            result = from_pvt_v2(teacher, images=images, calibration=way)
            made[name] = result.state_dict
            rest = {key: teacher[key] for key in result.left_out}
        scenes = draw_scenes(size=args.image_size, seed=seed)
        made['drawn'] = from_pvt_v2(teacher, images=scenes).state_dict
        made['random_kv'] = with_random_kv(made['none'], str(result.arch), seed)
        made['mean'] = with_mean(made['full256'])
        for name, weights in made.items():
            save_checkpoint(weights | rest, args.out / f'{name}_{seed}.safetensors')
        print(f'seed {seed}: {", ".join(made)} in {args.out}', flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
