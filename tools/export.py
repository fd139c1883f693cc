"""Exports a segmentation model, or any model's backbone, as a graph for other runtimes.

    python tools/export.py CONFIG [CHECKPOINT] OUT.onnx [--backbone] [--shape 224 224] [--static]

OUT's ending says the format: .onnx (opset 18; needs onnx, onnxruntime and onnxscript) or .pt2
(torch.export). The graph takes normalised images (B, C, height, width), batches of 1 to 256, and
with --static one size, else any from 64 pixels a side. It gives class scores of the images' size,
or with --backbone the maps. It is compared with PyTorch on noise and on a single colour, at three
sizes where it takes any, and not kept if they differ by more than 1e-4 on noise or by NaN; more on
a single colour, where rounding decides between tokens that are nearly equal, is a warning.

The distances of all tokens are in memory at once, several times: 4 (H W / 16)^2 bytes each.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope

from clustr_mm.datasets.files import WEIGHT_SUFFIXES
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.config import clustr_backbone, library_of, load_config
from clustr_mm.engine.export import (
    SegmentorGraph,
    differences,
    make_exportable,
    to_onnx,
    to_program,
)
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.weights.files import load_strictly, read_checkpoint, state_dict_of

TOLERANCE = 1e-4


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose backbone is ClusTR')
    parser.add_argument('paths', nargs='+', metavar='[CHECKPOINT] OUT')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    parser.add_argument(
        '--shape', nargs=2, type=int, default=[224, 224], metavar=('H', 'W'),
        help='of the example that is traced, and with --static of all images (224 224)',
    )  # fmt: skip
    parser.add_argument('--static', action='store_true', help='a graph for this shape alone')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    add_trust(parser)
    return parser.parse_args(argv)


def load_model(options: argparse.Namespace) -> torch.nn.Module:
    """The module to export, with its weights."""
    cfg = load_config(options.config)
    backbone = clustr_backbone(cfg)
    backbone.init_cfg = None
    library = library_of(cfg)
    if not options.backbone and library != 'mmseg':
        raise UserError(
            f'config {options.config} is no segmentation model; its backbone can be exported with '
            '--backbone'
        )
    torch.manual_seed(options.seed)
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(backbone if options.backbone else cfg.model)
    if len(options.paths) == 2:
        source = options.paths[0]
        content = read_checkpoint(source, trust=options.trust_checkpoint)
        weights = state_dict_of(content, source)
        load_strictly(model, weights, 'backbone.' if options.backbone else None, source)
    return (model if options.backbone else SegmentorGraph(model)).eval()


def sizes_to_check(options: argparse.Namespace) -> list[tuple[int, int]]:
    """The traced shape, and where others are served a smaller one and an odd one."""
    height, width = options.shape
    if options.static:
        return [(height, width)]
    return [(height, width), (max(64, height // 2), max(96, width // 2)), (97, 131)]


def check(module: torch.nn.Module, path: str, options: argparse.Namespace) -> None:
    """Prints how far a written graph is from PyTorch, and refuses one that is too far."""
    found = differences(module, path, sizes_to_check(options))
    for ((height, width), kind), difference in found.items():
        print(f'{height} x {width}, {kind}: differs from PyTorch by {difference:.1e}')
    noise, flat = (
        float(np.max([value for (_, kind), value in found.items() if kind == wanted]))
        for wanted in ('random', 'flat')
    )  # Python's max would pass over NaN
    if not noise <= TOLERANCE or math.isnan(flat):
        raise UserError(
            f'the graph differs from PyTorch by {noise:.1e} on noise and {flat:.1e} on a single '
            f'colour; more than {TOLERANCE:.0e} on noise, or NaN, is not kept'
        )
    if flat > TOLERANCE:
        print(
            f'warning: on a single colour it differs by {flat:.1e}, more than {TOLERANCE:.0e}: '
            'tokens are nearly equal there, and rounding decides which become centres'
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    out = Path(options.paths[-1])
    given = [path.endswith(WEIGHT_SUFFIXES) for path in options.paths[:-1]]
    if out.suffix not in ('.onnx', '.pt2') or given not in ([], [True]):
        raise UserError(
            f'{" ".join(options.paths)}: after the config comes the checkpoint (.pth or '
            '.safetensors), or none, then the file to write (.onnx or .pt2)'
        )
    model = load_model(options)
    program = to_program(model, options.shape, not options.static)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f'partial-{out.name}')
    try:
        if out.suffix == '.pt2':
            torch.export.save(program, partial)
        else:
            to_onnx(program, str(partial))
        check(make_exportable(model, not options.static), str(partial), options)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    print(f'{out}: {out.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    sys.exit(run_tool(main))
