"""Counts what a backbone's step must compute and move on a GPU; it needs none.

    python tools/analysis/count_traffic.py [--models clustr_s pvtv2_b2] [--batch 64]
        [--shape 224 224] [--train] [--task upernet] [--top 12]
    python tools/analysis/count_traffic.py --clustering 66800 64

Half precision, eager. Every operator reads its inputs from the device's memory and writes its
outputs there; the floor is the least time that this and its matrix products take on an H200, summed
over the operators. A GPU takes longer than the floor; what two models must do compares.

--task puts the backbones into UperNet or Mask R-CNN, of which everything counts but targets,
losses, suppression and cutting regions out. --top lists the operators that cost most. --clustering
counts the clustering's kernels by themselves, for one image of N float32 tokens of C channels.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from clustr_mm.analysis.kernels import kernel_work
from clustr_mm.analysis.networks import Network
from clustr_mm.analysis.peers import build_backbone
from clustr_mm.analysis.roofline import cluster_counts
from clustr_mm.analysis.tables import markdown_table
from clustr_mm.analysis.tasks import TASKS, build_task
from clustr_mm.analysis.traffic import H200, Step, count_step
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser

HEADER = ['model', 'operators', 'TFLOP', 'GB', 'floor, ms', 'MiB', 'throughput', 'memory']


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--models', nargs='+', default=['clustr_s', 'swin_t', 'pvtv2_b2'],
        help="as benchmark.py's; the last is what the others are compared with",
    )  # fmt: skip
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument(
        '--shape', nargs=2, type=int, default=[224, 224], metavar=('H', 'W'), help='224 224'
    )
    parser.add_argument('--train', action='store_true', help='a training step, not inference')
    parser.add_argument('--task', choices=sorted(TASKS), help='whole models, as our configs have')
    parser.add_argument('--top', type=int, default=0, metavar='N', help='operators to list (none)')
    parser.add_argument(
        '--clustering', nargs=2, type=int, metavar=('N', 'C'), help='the kernels, not models'
    )
    options = parser.parse_args(argv)
    if min(options.batch, *options.shape, *(options.clustering or ())) < 1:
        raise UserError('--batch, --shape and --clustering need numbers of at least 1')
    return options


def line(name: str, step: Step, baseline: Step) -> list[str]:
    whole = step.whole
    return [
        name,
        f'{whole.calls:,}',
        f'{whole.operations / 1e12:.2f}',
        f'{whole.bytes / 1e9:.1f}',
        f'{1e3 * whole.seconds:.2f}',
        f'{step.peak_bytes / 2**20:,.0f}',
        f'{baseline.whole.seconds / whole.seconds:.2f}',
        f'{step.peak_bytes / baseline.peak_bytes:.2f}',
    ]


def dearest(step: Step, top: int) -> list[list[str]]:
    """The operators with the highest floors."""
    shares = sorted(step.shares.items(), key=lambda item: -item[1].seconds)[:top]
    return [
        [
            name,
            f'{share.calls:,}',
            f'{share.operations / 1e12:.2f}',
            f'{share.bytes / 1e9:.1f}',
            f'{1e3 * share.seconds:.2f}',
        ]
        for name, share in shares
    ]


def of_kernels(tokens: int, channels: int) -> list[list[str]]:
    """The clustering's kernels at the precisions of their operands."""
    counts = cluster_counts(tokens)
    lines = [['operands', 'kernel', 'TFLOP', 'MB', 'floor, ms']]
    for precision in ('fp16x3', 'fp16'):
        works = kernel_work((1, tokens, channels), 4, counts, precision)
        for name, work in works.items():
            if name < 'K4':
                lines.append([
                    precision,
                    name,
                    f'{work.operations / 1e12:.3f}',
                    f'{work.bytes / 1e6:.1f}',
                    f'{1e3 * work.floor(H200):.3f}',
                ])  # fmt: skip
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    warnings.filterwarnings('ignore')
    device = f'{H200.operations / 1e12:.0f} TFLOP/s and {H200.bytes / 1e12:.1f} TB/s (H200)'
    if options.clustering:
        print('dpc_knn, {} tokens of {} channels; at {}\n'.format(*options.clustering, device))
        print(markdown_table(of_kernels(*options.clustering)))
        return
    shape = tuple(options.shape)
    steps, libraries = {}, {}
    for name in options.models:
        if options.task:
            model, libraries[name] = Network(build_task(options.task, name, shape)), options.task
        else:
            model, libraries[name] = build_backbone(name, shape)
        steps[name] = count_step(model, (options.batch, *shape), options.train)
    baseline = steps[options.models[-1]]
    print(
        f'{"training step" if options.train else "inference"}, batch {options.batch}, '
        f'{shape[0]} x {shape[1]}, half precision, eager; at {device}\n'
    )
    rows = [line(f'{name} ({libraries[name]})', step, baseline) for name, step in steps.items()]
    print(markdown_table([HEADER, *rows]))
    for name, step in steps.items() if options.top else ():
        print(f'\n{name}\n')
        print(markdown_table([HEADER[:5], *dearest(step, options.top)]))


if __name__ == '__main__':
    sys.exit(run_tool(main))
