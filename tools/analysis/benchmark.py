"""Times ClusTR beside other backbones, alone and in whole models, and its clustering by itself.

    python tools/analysis/benchmark.py speed --shape 224 512 --batch 4 [--train] [--dtype float16]
        [--compile] [--task upernet] [--models clustr_s clustr_s+recluster_every=0 pvtv2_b2]
    python tools/analysis/benchmark.py clustering  # dpc_knn by itself over N, share of the roofline
    python tools/analysis/benchmark.py growth      # time and memory over N, exponents, a picture
    python tools/analysis/benchmark.py memory      # peak memory of whole images on a CPU

Every command prints a table and writes it as a CSV file, named by what was measured, dtype, torch
and device, into --out; the command is in every line.

speed: in every round each model runs once, one after the other, in one process with the same
threads; the ratio is the median over rounds of the round's own ratio to the last model, so that a
drifting or shared machine does not favour a model. A training step is forward, backward and AdamW.
clustering: the roofline is a matrix product of the same size at the same precision of operands.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from clustr_mm.analysis import knob_settings, measure, peak_mib
from clustr_mm.analysis.growth import (
    TOKENS,
    TOKENS_AT_800_1333,
    exponents,
    measure_growth,
    plot_growth,
)
from clustr_mm.analysis.peers import build_backbone
from clustr_mm.analysis.records import circumstances, results_file, write_rows
from clustr_mm.analysis.roofline import (
    cluster_counts,
    matrix_product,
    product_of,
    time_call,
    why_not_backend,
)
from clustr_mm.analysis.speed import Step, backbone_step, compare, model_step
from clustr_mm.analysis.tasks import TASKS, build_task, make_batch, why_not_task
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.ops.clustering import BACKENDS, dpc_knn

DTYPES = ('float32', 'float16', 'bfloat16')


def shape_of(text: str) -> tuple[int, int]:
    """Reads '224' or '800x1333'."""
    sides = [int(side) for side in text.split('x')]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0], sides[-1]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    shared.add_argument('--threads', type=int, help="on a CPU; torch's choice without it")
    shared.add_argument(
        '--out',
        default='work_dirs/benchmark',
        metavar='FOLDER',
        help='where the CSV files go (default work_dirs/benchmark)',
    )
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    speed = commands.add_parser('speed', parents=[shared], help='backbones and whole models')
    speed.add_argument(
        '--models',
        nargs='+',
        default=['clustr_s', 'swin_t', 'resnet50', 'pvtv2_b2'],
        help='clustr_t, clustr_s, clustr_b, pvtv2_b2, swin_t or resnet50; the last is what the '
        'others are compared with; ClusTR takes options, as in clustr_s+recluster_every=0',
    )
    speed.add_argument(
        '--task',
        default='backbone',
        choices=['backbone', *TASKS],
        help='the backbones alone (the default), or whole models of our configs with them',
    )
    speed.add_argument(
        '--shape', nargs='+', type=shape_of, default=[(224, 224), (512, 512)], metavar='SIDE|HxW'
    )
    speed.add_argument('--batch', type=int, default=4)
    speed.add_argument('--rounds', type=int, default=5)
    speed.add_argument('--train', action='store_true', help='a training step, not inference')
    speed.add_argument(
        '--dtype',
        default='float32',
        choices=DTYPES,
        help='half precision is autocast in training and in whole models',
    )
    speed.add_argument(
        '--compile',
        nargs='?',
        const='default',
        metavar='MODE',
        help="torch.compile the backbone, in torch's mode MODE, say reduce-overhead",
    )

    alone = argparse.ArgumentParser(add_help=False)
    alone.add_argument('--tokens', nargs='+', type=int, metavar='N')
    alone.add_argument('--channels', type=int, default=64)
    alone.add_argument('--backends', nargs='+', metavar='NAME', help=', '.join(BACKENDS))
    clustering = commands.add_parser(
        'clustering', parents=[shared, alone], help='dpc_knn by itself, over N'
    )
    clustering.add_argument('--batch', type=int, default=1)
    clustering.set_defaults(tokens=[196, 784, 3136, 16384, TOKENS_AT_800_1333])
    growth = commands.add_parser(
        'growth', parents=[shared, alone], help='exponents of time and memory, with a picture'
    )
    growth.set_defaults(tokens=list(TOKENS))

    memory = commands.add_parser('memory', help='peak memory on a CPU')
    memory.add_argument('--only', choices=['dpc_knn'], help='leave the backbone out')
    case = commands.add_parser('memory-case', help='one case of memory, in this process')
    case.add_argument('case')
    options = parser.parse_args(argv)
    if getattr(options, 'device', 'cpu').startswith('cuda') and not torch.cuda.is_available():
        raise UserError(f'--device {options.device}: torch sees no GPU here; say cpu')
    for name in ('batch', 'rounds', 'threads'):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f'--{name} is {value}; use at least 1')
    return options


def make_step(options: argparse.Namespace, name: str, shape: tuple[int, int]) -> tuple[Step, str]:
    """A model's step, and the library that its backbone is from."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.task == 'backbone':
        model, library = build_backbone(name, shape)
        images = torch.randn(options.batch, 3, *shape, device=device)
        return backbone_step(model, images, options.train, dtype, options.compile), library
    model = build_task(options.task, name, shape).to(device)
    batch = make_batch(options.task, options.batch, shape, device)
    library = 'clustr_mm' if name.startswith('clustr_') else 'mmdet'
    return model_step(model, batch, options.train, dtype, options.compile), library


def speed(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    if options.task != 'backbone' and (reason := why_not_task(options.task, device)):
        raise UserError(f'--task {options.task}: {reason}')
    facts = circumstances(device)
    mode = 'train' if options.train else 'infer'
    compiled = options.compile or 'eager'
    what = '_'.join(['speed', options.task, mode, *([compiled] if options.compile else [])])
    path = results_file(options.out, what, options.dtype, device)
    print(
        f'{"training step" if options.train else "inference"}, {options.task}, batch '
        f'{options.batch}, {options.dtype}, {compiled}, {options.rounds} rounds, '
        + ', '.join(f'{key} {value}' for key, value in facts.items() if key != 'command')
    )
    baseline = options.models[-1]
    print(
        f'{"images":>9}  {"model":<32}{"ms":>9}{"img/s":>9}{"MiB":>7}'
        f'   time x {baseline} (processor time), memory x'
    )
    rows: list[dict[str, Any]] = []
    for shape in options.shape:
        made = {name: make_step(options, name, shape) for name in options.models}
        timings = compare(
            {name: step for name, (step, _) in made.items()}, baseline, options.rounds
        )
        least = timings[baseline].peak_mib
        for name, timing in timings.items():
            memory_ratio = timing.peak_mib / least if timing.peak_mib and least else None
            row = dict(
                task=options.task,
                mode=mode,
                model=name,
                library=made[name][1],
                images=f'{shape[0]}x{shape[1]}',
                batch=options.batch,
                dtype=options.dtype,
                compiled=options.compile,
                seconds=timing.seconds,
                images_per_second=options.batch / timing.seconds,
                latency=timing.latency,
                fastest=timing.fastest,
                cpu_seconds=timing.cpu_seconds,
                peak_mib=timing.peak_mib,
                ratio=timing.ratio,
                cpu_ratio=timing.cpu_ratio,
                memory_ratio=memory_ratio,
                baseline=baseline,
                rounds=options.rounds,
                **facts,
            )
            rows.append(rounded(row))
            print(
                f'{row["images"]:>9}  {name:<32}{1e3 * timing.seconds:9.1f}'
                f'{row["images_per_second"]:9.1f}{said(timing.peak_mib, ".0f"):>7}'
                f'   {timing.ratio:.3f} ({said(timing.cpu_ratio)}), {said(memory_ratio)}',
                flush=True,
            )
        write_rows(path, rows)  # what is done outlasts an interruption
    print(f'table: {path}')


def said(value: float | None, form: str = '.3f') -> str:
    return '-' if value is None else format(value, form)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f'{v:.5g}') if isinstance(v, float) else v for k, v in row.items()}


def backends_of(options: argparse.Namespace) -> list[str]:
    """The backends asked for, or all that run on the device."""
    x = torch.zeros(1, 8, options.channels, device=options.device)
    reasons = {name: why_not_backend(name, x) for name in options.backends or BACKENDS}
    for name, reason in reasons.items():
        if reason is not None and options.backends:
            raise UserError(f'--backends {name}: {reason}')
        if reason is not None:
            print(f'{name} is left out: {reason}')
    return [name for name, reason in reasons.items() if reason is None]


def clustering(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    facts = circumstances(device)
    path = results_file(options.out, 'clustering', 'float32', device)
    clock = 'device time' if device.type == 'cuda' else "the processor's time of all threads"
    print(
        f'dpc_knn, batch {options.batch}, {options.channels} channels, float32, {clock}, '
        + ', '.join(f'{key} {value}' for key, value in facts.items() if key != 'command')
    )
    print(f'{"N":>7}  {"backend":<10}{"ms":>11}{"product ms":>12}{"share of the roofline":>23}')
    rows: list[dict[str, Any]] = []
    backends = backends_of(options)
    for tokens in options.tokens:
        size = (options.batch, tokens, options.channels)
        x = torch.randn(*size, device=device)
        for backend in backends:
            if why_not_backend(backend, x) is not None:
                continue
            counts = cluster_counts(tokens)
            if backend == 'triton':
                product = product_of('fp16x3', *size, device)
            else:
                product = matrix_product(*size, torch.float32, device)
            # One after the other, so that both meet the same machine.
            of_product = time_call(product, device)
            seconds = time_call(lambda x=x, b=backend, c=counts: dpc_knn(x, c, backend=b), device)
            of_product = min(of_product, time_call(product, device))
            row = dict(
                backend=backend,
                tokens=tokens,
                channels=options.channels,
                batch=options.batch,
                clusters=' '.join(map(str, counts)),
                operands='fp16x3' if backend == 'triton' else 'float32',
                seconds=seconds,
                product_seconds=of_product,
                share=of_product / seconds,
                **facts,
            )
            rows.append(rounded(row))
            print(
                f'{tokens:>7}  {backend:<10}{1e3 * seconds:11.3f}{1e3 * of_product:12.3f}'
                f'{of_product / seconds:22.0%}',
                flush=True,
            )
            write_rows(path, rows)
    print(f'table: {path}')


def growth(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    facts = circumstances(device)
    path = results_file(options.out, 'growth', 'float32', device)
    print(
        f'dpc_knn, batch 1, {options.channels} channels, float32, '
        + ', '.join(f'{key} {value}' for key, value in facts.items() if key != 'command')
    )
    print(f'{"backend":<10}{"N":>8}{"seconds":>11}{"MiB above the input":>21}')
    points: dict[str, list] = {}
    rows: list[dict[str, Any]] = []
    for backend in backends_of(options):
        points[backend] = []
        for point in measure_growth(backend, sorted(options.tokens), options.channels, device):
            points[backend].append(point)
            print(
                f'{backend:<10}{point.tokens:>8}{point.seconds:11.4f}'
                f'{said(point.peak_mib, ".1f"):>21}',
                flush=True,
            )
            rows.append(rounded(dict(
                backend=backend,
                tokens=point.tokens,
                channels=options.channels,
                seconds=point.seconds,
                peak_mib=point.peak_mib,
                time_exponent=None,
                memory_exponent=None,
                **facts,
            )))  # fmt: skip
        of_time, of_memory = exponents(points[backend])
        for row in rows:
            if row['backend'] == backend:
                row |= rounded(dict(time_exponent=of_time, memory_exponent=of_memory))
        write_rows(path, rows)
        print(f'{backend}: time ~ N^{said(of_time, ".2f")}, memory ~ N^{said(of_memory, ".2f")}')
    title = f'dpc_knn, {options.channels} channels, float32, {facts["device"]}'
    picture = results_file(options.out, 'growth', 'float32', device, '.png')
    plot_growth(points, picture, title)
    print(f'table: {path}\npicture: {picture}')


def memory_case(case: str) -> None:
    """Runs one case in this process and prints its peak in MiB."""
    if case.startswith('dpc_knn'):
        x = torch.randn(1, TOKENS_AT_800_1333, 64)
        dpc_knn(x[:, :3000], (49, 196))  # what loading code and starting threads need
        _, cost = measure(lambda: dpc_knn(x, (1043, 4172)), x.device)
        print(cost.peak_mib)
        return
    model, _ = build_backbone(case, (800, 1333))
    images = torch.randn(1, 3, 800, 1333)
    with torch.no_grad():
        model.eval()(images)
    print(peak_mib())


def memory(options: argparse.Namespace) -> None:
    """Prints the peak memory of every case, each a process of its own."""
    print(
        f'peak resident memory, torch {torch.__version__}, cpu, {torch.get_num_threads()} threads'
    )
    cases = [('dpc_knn', f'dpc_knn, {TOKENS_AT_800_1333} x 64, above its input')]
    if options.only != 'dpc_knn':
        for setting in knob_settings():
            name = f'clustr_s+{setting}'
            cases.append((name, f'{name}, 800 x 1333, in all'))
    for case, label in cases:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, 'memory-case', case],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peak = float(done.stdout.split()[-1])
        print(f'{peak:7.0f} MiB  {time.perf_counter() - start:6.1f} s  {label}', flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    if not os.environ.get('CLUSTR_DEBUG'):
        warnings.filterwarnings('ignore')
    if getattr(options, 'threads', None):
        torch.set_num_threads(options.threads)
    commands = dict(speed=speed, clustering=clustering, growth=growth, memory=memory)
    if options.command == 'memory-case':
        memory_case(options.case)
    else:
        commands[options.command](options)


if __name__ == '__main__':
    sys.exit(run_tool(main))
