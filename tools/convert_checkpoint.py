"""Turns others' weights into ClusTR's.

    python tools/convert_checkpoint.py SRC DST
    python tools/convert_checkpoint.py SRC DST --from pvt_v2 --images DIR

The first takes the published network's key names; values and dtypes are kept. The second makes a
ClusTR from PVTv2's weights (pvt_v2_b0 to b4, of the original, timm, mmdet or transformers) and says
how many parameters are exact, approximated and new. What is approximated is measured on 32
photographs from --images, or on drawn scenes without; --calibrate full with 256 also fits keys and
values to the teacher's.

SRC is a file or an http(s) address. DST gets {'state_dict': {'backbone.*', 'head.fc.*'}}, or is a
safetensors file where its name ends so; from PVTv2 its metadata name source, SHA-256, licence and
how it was made. A key without a partner on the other side is an error that lists it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.utils import track_iter_progress

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.weights.files import read_checkpoint, save_checkpoint, state_dict_of
from clustr_mm.weights.published import convert_published


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', help='checkpoint, or its http(s) address')
    parser.add_argument('dst', metavar='DST', type=Path, help='where to write ours')
    parser.add_argument(
        '--from',
        dest='kind',
        choices=('published', 'pvt_v2'),
        default='published',
        help='whose weights SRC holds (by default the published ClusTR)',
    )
    parser.add_argument(
        '--arch',
        help='tiny, small or base, or a dict of your own variant such as '
        '"{\'embed_dims\': (64, 128), ...}"; found out if not given. From pvt_v2_b3 also base',
    )
    of_pvt = parser.add_argument_group('with --from pvt_v2')
    of_pvt.add_argument('--images', metavar='DIR', help='folder with photographs, any below it')
    of_pvt.add_argument('--num-images', type=int, metavar='N', help='how many to take (default 32)')
    of_pvt.add_argument(
        '--image-size',
        type=int,
        metavar='PIXELS',
        help='side of the square that the network sees of each (default 224)',
    )
    of_pvt.add_argument(
        '--calibrate',
        choices=('sigma', 'full'),
        help='what the photographs are for: one divisor a block (default), or keys and values '
        'by least squares',
    )
    add_trust(parser)
    args = parser.parse_args(argv)
    arch = args.arch
    if arch is not None and arch.lstrip().startswith('{'):
        try:
            arch = ast.literal_eval(arch)
        except (ValueError, SyntaxError) as error:
            raise UserError(f'--arch {arch} is no dict of plain values: {error}') from error
    if args.kind == 'pvt_v2':
        print(_from_pvt_v2(args, arch))
        return
    if args.images or args.num_images or args.image_size or args.calibrate:
        raise UserError('options for photographs are for --from pvt_v2; add that')
    content = read_checkpoint(args.src, trust=args.trust_checkpoint)
    found, converted = convert_published(state_dict_of(content, args.src), arch)
    save_checkpoint(converted, args.dst)
    print(f'{args.dst}: {len(converted)} tensors, arch {found!r}')


def _from_pvt_v2(args: argparse.Namespace, arch: str | dict | None) -> str:
    """Converts, writes, and says what was made."""
    from clustr_mm.weights.files import file_hash
    from clustr_mm.weights.photographs import draw_scenes, read_photographs
    from clustr_mm.weights.pvt_v2 import LICENCE, from_pvt_v2

    if (args.calibrate or args.num_images) and not args.images:
        raise UserError('--calibrate and --num-images need photographs; add --images DIR')
    content = read_checkpoint(args.src, trust=args.trust_checkpoint)
    state_dict = state_dict_of(content, args.src)
    size = args.image_size or 224
    if args.images:
        images, are = read_photographs(args.images, args.num_images or 32, size), 'photographs'
    else:
        images, are = draw_scenes(size=size), 'drawn scenes, for want of photographs'

    def track(blocks: Iterable, number: int) -> Iterable:
        return track_iter_progress((blocks, number), file=sys.stderr)

    made = from_pvt_v2(state_dict, arch, images, args.calibrate or 'sigma', are, track)
    metadata = dict(
        source=args.src, source_sha256=file_hash(args.src), licence=LICENCE, how=made.how
    )
    save_checkpoint(made.state_dict, args.dst, {**metadata, 'arch': str(made.arch)})
    counts = dict(exact=made.exact, approximated=made.approximated, new=made.new)
    total = sum(counts.values())
    said = ', '.join(f'{n:,} {what} ({n / total:.1%})' for what, n in counts.items())
    lines = [
        f'{args.dst}: arch {made.arch!r} from PVTv2; {total:,} parameters of the backbone: {said}',
        f'how: {made.how}',
    ]
    if made.left_out:
        lines.append(f'left out: {len(made.left_out)} keys, such as {made.left_out[0]}')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(run_tool(main))
