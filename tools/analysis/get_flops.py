"""Counts what a model computes for one image: all of it, by part and kind.

    python tools/analysis/get_flops.py CONFIG [--shape 224 224]

The unit is GMAC, 10^9 multiply-adds, which papers of this field call GFLOPs. The table is counted
from the calls that the model's code makes; torch's FlopCounterMode and a closed formula must agree
with it. Beside it stand the published way of counting, and what that leaves out. The columns:

- linear, conv: linear layers and convolutions
- attention, fine: attention to the coarsest scale (and dense attention), and to all other scales
- distances: of all tokens to each other, for the clustering
- assignment: distances of all tokens to the cluster centres
- merge: weighted sums of the tokens of each cluster
"""

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clustr_mm.analysis import build_empty, parameters_of
from clustr_mm.analysis.flops import PUBLISHED_KINDS, Count, Macs, count_macs
from clustr_mm.analysis.tables import markdown_table
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import load_config
from clustr_mm.engine.options import Parser

TOLERANCE = 0.005  # of the total, between the ways of counting
HEADS = {'linear': 'linear', 'convolution': 'conv', 'fine_attention': 'fine'}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of mmdet, mmseg, mmpose or mmpretrain')
    parser.add_argument(
        '--shape', nargs=2, type=int, default=[224, 224], metavar=('H', 'W'), help='224 224'
    )
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    return parser.parse_args(argv)


def giga(count: int) -> str:
    return f'{count / 1e9:.3f}'


def settings_of(backbone: Mapping[str, Any]) -> str:
    """A backbone's type and those of its settings that what it computes depends on."""
    said = ('arch', 'scales', 'recluster_every', 'cluster_window', 'fine_scope')
    words = [f'{key}={backbone[key]!r}' for key in said if key in backbone]
    return f'{backbone["type"]}({", ".join(words)})'


def table(count: Count) -> str:
    """A line a part, a column a kind, both with sums."""
    rows = {**count.parts, 'sum': count.whole}
    kinds = [kind for kind, macs in asdict(count.whole).items() if macs]
    lines = [['GMAC', *(HEADS.get(kind, kind) for kind in kinds), 'sum']]
    for name, macs in rows.items():
        cells = [getattr(macs, kind) for kind in kinds]
        lines.append([name, *(giga(cell) if cell else '-' for cell in cells), giga(macs.total)])
    return markdown_table(lines)


def published(macs: Macs) -> str:
    """The published figure of a backbone, and what it lacks."""
    left_out = {
        'attention to the finer scales': macs.fine_attention,
        'distances': macs.distances,
        'assignment': macs.assignment,
        'merge': macs.merge,
    }
    parts = ', '.join(f'{name} {giga(each)}' for name, each in left_out.items() if each)
    kinds = ', '.join(PUBLISHED_KINDS[:-1])
    return (
        f'the published way of counting: {giga(macs.published)} ({kinds}, attention to the '
        f'coarsest scale)\n  it leaves out {giga(macs.total - macs.published)} of '
        f'{giga(macs.total)}: {parts}'
    )


def check(name: str, found: int, expected: int) -> str:
    """A way of counting beside the table's.

    Raises:
        UserError: If they differ by more than the tolerance.
    """
    difference = found / expected - 1
    if abs(difference) > TOLERANCE:
        raise UserError(
            f'{name} counts {giga(found)} GMAC, the table {giga(expected)}: the model has '
            'operations that one of them does not know; count the backbone alone with --backbone'
        )
    return f'{name}: {giga(found)} ({difference:+.2%})'


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    cfg = load_config(options.config)
    model = build_empty(cfg)
    if options.backbone:
        model = model.backbone
    count = count_macs(model, *options.shape)
    parameters = sum(p.numel() for p in model.parameters())
    scope = 'the backbone of ' if options.backbone else ''
    print(f'{scope}{options.config}, one image of {options.shape[0]} x {options.shape[1]}')
    print(f'backbone: {settings_of(cfg.model.backbone)}\n')
    print(table(count))
    print(check("torch's FlopCounterMode", count.dispatched, count.whole.total))
    if count.formula is not None:
        print(check("closed formula, the backbone's", count.formula, count.backbone.total))
        print(published(count.backbone))
        print(
            f'selection of neighbours: {count.comparisons / 1e9:.3f} G comparisons (no '
            'multiply-adds)'
        )
    print(f'parameters: {parameters / 1e6:.2f} M' + split_of(model, options.backbone))
    print(
        f'activations: {count.activations / 1e6:.1f} M elements (outputs of linear layers, '
        'convolutions and attention)'
    )


def split_of(model: object, backbone_alone: bool) -> str:
    if backbone_alone:
        return ''
    n = parameters_of(model)
    return f' (backbone {n.backbone / 1e6:.2f}, neck {n.neck / 1e6:.2f}, heads {n.heads / 1e6:.2f})'


if __name__ == '__main__':
    sys.exit(run_tool(main))
