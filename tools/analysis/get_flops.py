"""Counts what a model computes for one image: all of it, by part and kind.

    python tools/analysis/get_flops.py CONFIG [--shape 224 224] [--backbone]

The unit is GMAC, 10^9 multiply-adds, which papers of this field call GFLOPs, counted by torch's
FlopCounterMode. Below the table stand the published way of counting, and what that leaves out. The
columns:

- linear, convolution: linear layers and convolutions
- attention, fine: attention to the coarsest scale (and dense attention), and to all other scales
- clustering: distances of all tokens to each other and to the cluster centres
- merge: weighted sums of the tokens of each cluster
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence

from clustr_mm.analysis.flops import KINDS, PUBLISHED_KINDS, count_macs
from clustr_mm.analysis.parameters import build_empty, parameters_of
from clustr_mm.analysis.records import markdown_table
from clustr_mm.engine.config import load_config
from clustr_mm.engine.errors import run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.models import ClusTR


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of mmdet, mmseg, mmpose or mmpretrain')
    parser.add_argument(
        '--shape', nargs=2, type=int, default=[224, 224], metavar=('H', 'W'), help='224 224'
    )
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    options = parser.parse_args(argv)
    warnings.filterwarnings('ignore')
    model = build_empty(load_config(options.config))
    n = parameters_of(model)
    parts = count_macs(model.backbone if options.backbone else model, *options.shape)
    whole = sum(parts.values(), Counter())
    kinds = [kind for kind in KINDS if whole[kind]]
    lines = [['GMAC', *kinds, 'sum']]
    for name, macs in {**parts, 'sum': whole}.items():
        cells = [giga(macs[kind]) if macs[kind] else '-' for kind in kinds]
        lines.append([name, *cells, giga(macs.total())])
    scope = 'the backbone of ' if options.backbone else ''
    print(f'{scope}{options.config}, one image of {options.shape[0]} x {options.shape[1]}\n')
    print(markdown_table(lines))
    if isinstance(model.backbone, ClusTR):
        stages = [macs for name, macs in parts.items() if name.startswith('stage')]
        backbone = sum(stages, Counter())
        seen = sum(backbone[kind] for kind in PUBLISHED_KINDS)
        print(
            f'the backbone in the published way of counting ({", ".join(PUBLISHED_KINDS)}): '
            f'{giga(seen)}, which leaves out {giga(backbone.total() - seen)} of '
            f'{giga(backbone.total())}'
        )
    print(
        f'parameters: {n.total / 1e6:.2f} M (backbone {n.backbone / 1e6:.2f}, '
        f'neck {n.neck / 1e6:.2f}, heads {n.heads / 1e6:.2f})'
    )


def giga(count: int) -> str:
    return f'{count / 1e9:.3f}'


if __name__ == '__main__':
    sys.exit(run_tool(main))
