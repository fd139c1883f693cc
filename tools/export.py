"""Exports a model, or its backbone, as a graph for other runtimes.

    python tools/export.py CONFIG [CHECKPOINT] OUT.onnx [--backbone] [--shape 224 224] [--static]

OUT's ending says the format: .onnx (opset 18; needs onnx, onnxruntime and onnxscript) or .pt2
(torch.export). The graph takes normalised images (B, C, height, width), named images, in batches of
1 to 256, and with --static one size, else any from 64 pixels a side. It gives a classifier's logits
and probabilities, a pose model's heat maps or simcc_x and simcc_y, a segmentation model's class
scores in the images' size, and of a detector the neck's maps; with --backbone the maps of any
model's stages.

The graph is compared with PyTorch on noise and on a single colour, at two batches, and three sizes
where it takes any. It is not kept if they differ by more than 1e-4 on noise or by NaN; more on a
single colour, where rounding decides between tokens that are nearly equal, is a warning. So is up
to 1e-2 on one draw of noise if two more agree: rounding decides for one of twenty thousand tokens.
The time is of one image, both in turn, on torch's threads (OMP_NUM_THREADS=1 makes it one).

The distances of all tokens are in memory at once, several times: 4 (H W / 16)^2 bytes each.
"""

import argparse
import math
import statistics
import sys
import time
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
    GRAPHS,
    ModelGraph,
    channels_of,
    differences,
    load_graph,
    make_exportable,
    to_onnx,
    to_program,
)
from clustr_mm.engine.options import Parser, add_trust
from clustr_mm.weights.files import load_strictly, read_checkpoint, state_dict_of

TOLERANCE = 1e-4
BY_ROUNDING = 1e-2  # where rounding moves a token to another cluster: 1.5e-4 of noise was seen
ROUNDS = 7


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose backbone is ClusTR')
    parser.add_argument('paths', nargs='+', metavar='[CHECKPOINT] OUT')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'),
        help='of the example that is traced, and with --static of all images (that of a pose '
        "model's config, else 224 224)",
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
    torch.manual_seed(options.seed)
    library = library_of(cfg)
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(backbone if options.backbone else cfg.model)
    if len(options.paths) == 2:
        source = options.paths[0]
        content = read_checkpoint(source, trust=options.trust_checkpoint)
        weights = state_dict_of(content, source)
        load_strictly(model, weights, 'backbone.' if options.backbone else None, source)
    return (model if options.backbone else GRAPHS[library](model)).eval()


def set_shape(model: torch.nn.Module, options: argparse.Namespace) -> None:
    """Fills in the shape, and that it is the only one, where the model says so."""
    own = model.input_size if isinstance(model, ModelGraph) else None
    options.shape = tuple(options.shape or own or (224, 224))
    if isinstance(model, ModelGraph) and not model.any_size:
        if own is not None and options.shape != own:
            asked, head = ' '.join(map(str, options.shape)), type(model.model.head).__name__
            raise UserError(
                f'--shape {asked}: {head} takes {own[0]} x {own[1]} alone; leave it out'
            )
        options.static = True


def shapes_to_check(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    """The traced size in two batches, and where others are served a smaller one and an odd one."""
    height, width = options.shape
    if options.static:
        return [(1, height, width), (2, height, width)]
    smaller = max(64, height // 2), max(96, width // 2)
    return [(1, height, width), (2, *smaller), (3, 97, 131)]


def check(module: torch.nn.Module, path: str, options: argparse.Namespace) -> None:
    """Prints how far a written graph is from PyTorch, and refuses one that is too far."""
    found = differences(module, path, shapes_to_check(options))
    apart = [
        shape
        for (shape, kind), far in found.items()
        if kind == 'random' and TOLERANCE < far <= BY_ROUNDING
    ]
    for shape in apart:
        more = [differences(module, path, [shape], draw)[shape, 'random'] for draw in (1, 2)]
        again = float(np.max(more))
        print(
            f'warning: one draw of noise differs by {found[shape, "random"]:.1e}, two more by '
            f'{again:.1e}; where two tokens are nearly equal, rounding decides'
        )
        found[shape, 'random'] = again
    for ((batch, height, width), kind), difference in found.items():
        print(f'{batch} x {height} x {width}, {kind}: differs from PyTorch by {difference:.1e}')
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


def compare_times(model: torch.nn.Module, path: str, options: argparse.Namespace) -> None:
    """Prints what one image takes in the graph and in PyTorch: medians of turns side by side."""
    graph = load_graph(path)
    image = torch.randn(1, channels_of(model), *options.shape)
    taken: list[tuple[float, float]] = []
    with torch.no_grad():
        for _ in range(1 + ROUNDS):  # the first is a warm-up
            begin = time.perf_counter()
            graph(image)
            middle = time.perf_counter()
            model(image)
            taken.append((middle - begin, time.perf_counter() - middle))
    in_graph, in_torch = (statistics.median(each) for each in zip(*taken[1:], strict=True))
    ratio = statistics.median(first / second for first, second in taken[1:])
    print(
        f'1 x {options.shape[0]} x {options.shape[1]}, {torch.get_num_threads()} threads: '
        f'{1e3 * in_graph:.0f} ms, PyTorch {1e3 * in_torch:.0f} ms (times {ratio:.2f})'
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
    set_shape(model, options)
    program = to_program(model, options.shape, not options.static)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f'partial-{out.name}')
    names = model.output_names if isinstance(model, ModelGraph) else ()
    try:
        if out.suffix == '.pt2':
            torch.export.save(program, partial)
        else:
            to_onnx(program, str(partial), names)
        check(make_exportable(model, not options.static), str(partial), options)
        compare_times(model, str(partial), options)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    if isinstance(model, ModelGraph) and model.left_out:
        print(f'{out} leaves out {model.left_out}')
    size = 'x'.join(map(str, options.shape)) if options.static else 'any size'
    print(f'{out}: {size}, {out.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    sys.exit(run_tool(main))
