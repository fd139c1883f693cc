"""Turns a state dict with the published network's key names into one with ours.

    python tools/convert_checkpoint.py SRC DST

SRC holds the published keys bare, or under 'model' or 'state_dict'. DST gets
{'state_dict': {'backbone.*', 'head.fc.*'}}, or is a safetensors file where its name ends so. Values
and dtypes are kept. A key without a partner on the other side is an error that lists it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.weights.files import read_checkpoint, save_checkpoint, state_dict_of
from clustr_mm.weights.published import convert_published


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', type=Path, help='checkpoint with published keys')
    parser.add_argument('dst', metavar='DST', type=Path, help='where to write ours')
    parser.add_argument(
        '--arch',
        help='tiny, small or base, or a dict of your own variant such as '
        '"{\'embed_dims\': (64, 128), ...}"; found out if not given',
    )
    add_trust(parser)
    args = parser.parse_args(argv)
    arch = args.arch
    if arch is not None and arch.lstrip().startswith('{'):
        try:
            arch = ast.literal_eval(arch)
        except (ValueError, SyntaxError) as error:
            raise UserError(f'--arch {arch} is no dict of plain values: {error}') from error
    content = read_checkpoint(args.src, trust=args.trust_checkpoint)
    found, converted = convert_published(state_dict_of(content, args.src), arch)
    save_checkpoint(converted, args.dst)
    print(f'{args.dst}: {len(converted)} tensors, arch {found!r}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
