"""Times ClusTR beside other backbones, and its clustering by itself.

    python tools/analysis/benchmark.py speed --shape 224 512 --batch 1 4 [--train]
        [--device cuda] [--amp fp16] [--compile] [--images PHOTOGRAPHS]
        [--models clustr_s clustr_s+recluster_every=0 pvtv2_b2]
    python tools/analysis/benchmark.py clustering [--tokens 1000 4000 16000] [--backends native]
        [--images PHOTOGRAPH] [--plot PNG --beside CSV]

Both print a table and write it as a CSV file, named by what was measured, precision, torch and
device, into --out; the command is in every line. They need torch alone, and mmdet and mmpretrain,
or timm, for the backbones to compare with.

speed: in every round each model runs once, one after the other, in one process with the same
threads; the ratio is the median over rounds of the round's own ratio to the last model, so that a
drifting or shared machine does not favour a model. On a CPU malloc keeps freed memory, for all
models alike. It ends with a Markdown table of processor time (on a GPU: of time by the clock). A
training step is forward, backward and AdamW. The share of the peak, of inference, is the speed of
layers and attention, as if clusters took no time, over that of a large product of matrices, which
has its turn in every round.
clustering: dpc_knn over numbers of tokens, and the exponents by which time and memory grow. The
tokens are random, of which no distance can be left out, or those that the first layer of an
untrained ClusTR makes of a photograph. --plot draws time and memory, dashed beside them those of
CSV files from other runs.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch

from clustr_mm.analysis.flops import count_macs
from clustr_mm.analysis.peers import build_backbone
from clustr_mm.analysis.records import (
    circumstances,
    markdown_table,
    results_file,
    write_rows,
)
from clustr_mm.analysis.speed import (
    backbone_step,
    compare,
    peak_memory,
    product_step,
    time_call,
)
from clustr_mm.models.clustr import PatchEmbed
from clustr_mm.ops.clustering import BACKENDS, can_run_native, dpc_knn
from clustr_mm.ops.clustering.triton import can_run_triton
from clustr_mm.ops.memory import keep_memory

AMP = {'fp16': torch.float16, 'bf16': torch.bfloat16}
# Tokens of one stage-1 map: 112 x 112 to 800 x 1333 pixels.
TOKENS = (784, 3136, 16_384, 66_800)
PRODUCT = 'a product of matrices'
_MOST = {'reference': 3200, 'traceable': 3200}  # tokens of which N x N matrices take 2 GB
_WHY_NOT = {'native': can_run_native, 'triton': can_run_triton}


class Parser(argparse.ArgumentParser):
    """Ends a mistake in one line, also where mmengine is missing, which the other tools need."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(f'error: {message} (see --help)')


def shape_of(text: str) -> tuple[int, int]:
    """Reads '224' or '800x1333'."""
    height, _, width = text.partition('x')
    return count_of(height), count_of(width or height)


def count_of(text: str) -> int:
    """Reads a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number of at least 1')
    return int(text)


def make_parser() -> Parser:
    shared = Parser(add_help=False)
    shared.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    shared.add_argument('--threads', type=count_of, help="on a CPU; torch's choice without it")
    shared.add_argument(
        '--out', default='work_dirs/benchmark', metavar='FOLDER', help='work_dirs/benchmark'
    )
    shared.add_argument(
        '--images', nargs='+', default=[], metavar='FILE',
        help='photographs, resized (needs Pillow); without it noise, which takes longer to cluster',
    )  # fmt: skip
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    speed = commands.add_parser('speed', parents=[shared], help='backbones side by side')
    speed.add_argument(
        '--models',
        nargs='+',
        default=['clustr_s', 'swin_t', 'convnext_t', 'resnet50', 'pvtv2_b2'],
        help='clustr_t, clustr_s, clustr_b, pvtv2_b2, swin_t, convnext_t or resnet50; the last is '
        'what the others are compared with; ClusTR takes options, as in clustr_s+recluster_every=0',
    )
    speed.add_argument(
        '--shape', nargs='+', type=shape_of, default=[(224, 224), (512, 512)], metavar='SIDE|HxW'
    )
    speed.add_argument('--batch', nargs='+', type=count_of, default=[4])
    speed.add_argument('--rounds', type=count_of, default=7)
    speed.add_argument('--train', action='store_true', help='a training step, not inference')
    speed.add_argument('--amp', choices=AMP, help='half precision by autocast; float32 without it')
    speed.add_argument(
        '--compile', nargs='?', const='default', metavar='MODE',
        help='torch.compile, in its mode MODE, say reduce-overhead',
    )  # fmt: skip

    clustering = commands.add_parser('clustering', parents=[shared], help='dpc_knn by itself')
    clustering.add_argument('--tokens', nargs='+', type=count_of, default=TOKENS, metavar='N')
    clustering.add_argument('--channels', type=count_of, default=64)
    clustering.add_argument('--batch', type=count_of, default=1)
    clustering.add_argument('--backends', nargs='+', choices=BACKENDS, metavar='NAME')
    clustering.add_argument('--plot', metavar='PNG', help='needs matplotlib')
    clustering.add_argument('--beside', nargs='+', default=[], metavar='CSV', help='other runs')
    return parser


def make_images(files: Sequence[str], batch: int, shape: tuple[int, int]) -> torch.Tensor:
    """A batch (B, 3, height, width) of photographs, one after the other, or of noise."""
    if not files:
        return torch.randn(batch, 3, *shape)
    from PIL import Image

    try:
        images = [Image.open(file).convert('RGB').resize(shape[::-1]) for file in files[:batch]]
    except OSError as error:
        make_parser().error(f'--images: {error}')
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    all_ = torch.stack([each.view(*shape, 3).permute(2, 0, 1) for each in pixels]).float()
    all_ = (all_ - 118) / 58  # about ImageNet's mean and standard deviation
    return all_.repeat(-(-batch // len(all_)), 1, 1, 1)[:batch].contiguous()


def make_tokens(options: argparse.Namespace, count: int) -> torch.Tensor:
    """Tokens (B, count, C) of photographs by an untrained first layer, or random ones."""
    if not options.images:
        return torch.randn(options.batch, count, options.channels)
    height = next(side for side in range(math.isqrt(count), 0, -1) if count % side == 0)
    torch.manual_seed(0)
    stem = PatchEmbed(3, options.channels, patch=7, stride=4)
    images = make_images(options.images, options.batch, (4 * height, 4 * count // height))
    with torch.no_grad():
        return stem(images)[0]


def layers_gmac(name: str, shape: tuple[int, int]) -> float | None:
    """10^9 multiply-adds of a backbone's layers and attention; None where torch cannot count."""
    try:
        parts = count_macs(build_backbone(name, shape)[0], *shape)
    except ValueError:  # torch is too old
        return None
    kinds = ('linear', 'convolution', 'attention', 'fine')
    return sum(found[kind] for found in parts.values() for kind in kinds) / 1e9


def speed(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    wall = device.type == 'cuda'  # by the clock, or by the processor's time
    facts = circumstances(device) | dict(memory_kept=device.type == 'cpu' and keep_memory())
    mode, precision = 'train' if options.train else 'infer', options.amp or 'fp32'
    what = '_'.join(['speed', mode, *([options.compile] if options.compile else [])])
    path = results_file(options.out, what, precision, device)
    print(
        f'{mode}, batch {" ".join(map(str, options.batch))} of '
        f'{"photographs" if options.images else "noise"}, {precision}, '
        f'{options.compile or "eager"}, {said(facts)}'
    )
    baseline = options.models[-1]
    print(
        f'{"images":<15}  {"model":<32}{"ms":>9}{"img/s":>9}{"MiB":>7}{"of peak":>9}'
        f'   time x {baseline} (processor time)'
    )
    rows: list[dict[str, Any]] = []
    table = [['images', *options.models]]
    for shape, batch in product(options.shape, options.batch):
        images = make_images(options.images, batch, shape).to(device)
        try:
            built = {name: build_backbone(name, shape) for name in options.models}
        except ValueError as error:
            make_parser().error(str(error))
        steps = {
            name: backbone_step(model, images, options.train, AMP.get(options.amp), options.compile)
            for name, (model, _) in built.items()
        }
        if not options.train:
            steps[PRODUCT], product_macs = product_step(device, AMP.get(options.amp))
        timings = compare(steps, baseline, options.rounds)
        peak = None
        if not options.train:
            fastest = timings.pop(PRODUCT)
            peak = product_macs / (fastest.seconds if wall else fastest.cpu_seconds)
        table.append([f'{batch} x {shape[0]} x {shape[1]}'])
        for name, timing in timings.items():
            seconds = timing.seconds if wall else timing.cpu_seconds
            ratio = timing.ratio if wall else timing.cpu_ratio
            table[-1].append(f'{seconds:.3g} s ({ratio:.2f})')
            gmac = None if peak is None else layers_gmac(name, shape)
            share = None if gmac is None else batch * 1e9 * gmac / seconds / peak
            row = dict(
                mode=mode,
                model=name,
                library=built[name][1],
                images=f'{shape[0]}x{shape[1]}',
                batch=batch,
                content='photographs' if options.images else 'noise',
                precision=precision,
                compiled=options.compile,
                gmac=gmac,
                share_of_peak=share,
                images_per_second=batch / timing.seconds,
                **vars(timing),
                baseline=baseline,
                rounds=options.rounds,
                **facts,
            )
            rows.append(row)
            print(
                f'{batch:>3} x {row["images"]:<9}  {name:<32}{1e3 * timing.seconds:9.1f}'
                f'{row["images_per_second"]:9.1f}{mib(timing.peak_mib):>7}{percent(share):>9}'
                f'   {timing.ratio:.3f} ({timing.cpu_ratio:.3f})',
                flush=True,
            )
        write_rows(path, rows)  # what is done outlasts an interruption
    print(markdown_table(table))
    print(f'table: {path}')


def clustering(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    facts = circumstances(device)
    path = results_file(options.out, 'clustering', 'fp32', device)
    print(f'dpc_knn, batch {options.batch}, {options.channels} channels, fp32, {said(facts)}')
    print(f'{"backend":<10}{"N":>7}{"ms":>11}{"processor ms":>14}{"MiB above the input":>21}')
    rows: list[dict[str, Any]] = []
    for backend in options.backends or BACKENDS:
        points = []
        for tokens in sorted(options.tokens):
            x = make_tokens(options, tokens).to(device)
            reason = _WHY_NOT[backend](x) if backend in _WHY_NOT else None
            if reason is not None and options.backends:
                make_parser().error(f'--backends {backend}: {reason}')
            if reason is not None:
                print(f'{backend} is left out: {reason}')
            if reason is not None or tokens > _MOST.get(backend, tokens):
                break
            coarse = max(1, tokens // 64)
            counts = (coarse, min(tokens, 4 * coarse))
            call = partial(dpc_knn, x, counts, backend=backend)
            call()
            taken = [time_call(call, device)]
            while len(taken) < 9 and sum(wall for wall, _ in taken) < 2:
                taken.append(time_call(call, device))
            wall, processor = (min(each) for each in zip(*taken, strict=True))
            _, peak = peak_memory(call, device)
            points.append((tokens, wall if device.type == 'cuda' else processor, peak))
            rows.append(
                dict(
                    backend=backend, tokens=tokens, channels=options.channels, batch=options.batch,
                    content='photographs' if options.images else 'noise', seconds=wall,
                    cpu_seconds=processor, peak_mib=peak, **facts,
                )
            )  # fmt: skip
            print(
                f'{backend:<10}{tokens:>7}{1e3 * wall:11.3f}{1e3 * processor:14.3f}'
                f'{mib(peak, ".1f"):>21}',
                flush=True,
            )
            write_rows(path, rows)
        if len(points) > 1:
            n, seconds, peaks = zip(*points, strict=True)
            memory = exponent(n, peaks) if all(peaks) else '-'
            print(f'{backend}: time ~ N^{exponent(n, seconds)}, memory ~ N^{memory}')
    if options.plot:
        plot(options, rows)
    print(f'table: {path}')


def plot(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """Draws time and memory over the tokens, and dashed those of other runs' tables."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs: list[tuple[str, Sequence[dict[str, Any]]]] = [('', rows)]
    for file in options.beside:
        try:
            with open(file, newline='') as table:
                runs.append((f'{Path(file).stem}: ', [*csv.DictReader(table)]))
        except OSError as error:
            make_parser().error(f'--beside: {error}')
    figure = Figure(figsize=(8, 3.4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for name, each in runs:
        for backend in dict.fromkeys(row['backend'] for row in each):
            own = [row for row in each if row['backend'] == backend]
            n = [int(row['tokens']) for row in own]
            label = f'{name}{backend}, {own[0].get("content") or "noise"}'
            style = dict(label=label, marker='.', linestyle='--' if name else '-')
            axes[0].loglog(n, [1e3 * float(row['cpu_seconds']) for row in own], **style)
            axes[1].loglog(n, [float(row['peak_mib'] or 'nan') for row in own], **style)
    for one, what in zip(axes, ('processor ms', 'MiB above the input'), strict=True):
        one.set(xlabel='tokens', ylabel=what)
        one.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(options.plot)


def exponent(n: Sequence[int], values: Sequence[float]) -> str:
    """The a of values ~ N^a: the slope of the least-squares line of their logarithms."""
    x, y = [math.log(tokens) for tokens in n], [math.log(value) for value in values]
    return f'{statistics.linear_regression(x, y).slope:.2f}'


def said(facts: dict[str, Any]) -> str:
    return ', '.join(f'{key} {value}' for key, value in facts.items() if key != 'command')


def percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.0f} %'


def mib(value: float | None, form: str = '.0f') -> str:
    return '-' if value is None else format(value, form)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.device.startswith('cuda') and not torch.cuda.is_available():
        parser.error(f'--device {options.device}: torch sees no GPU here; say cpu')
    if not os.environ.get('CLUSTR_DEBUG'):
        warnings.filterwarnings('ignore')
    if options.threads:
        torch.set_num_threads(options.threads)
    dict(speed=speed, clustering=clustering)[options.command](options)


if __name__ == '__main__':
    sys.exit(main())
