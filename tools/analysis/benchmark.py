"""Times backbones side by side, and shows what clustering and a large image need of memory.

    python tools/analysis/benchmark.py speed     # against mmdet's PVTv2-B2 at 224 and 512
    python tools/analysis/benchmark.py memory    # 66,800 tokens; 800 x 1333 at every setting

Speed: in every round each model runs once, one after the other, in one process with the same
threads. The ratio is the median over rounds of the round's own ratio, so that a drifting or shared
machine does not favour a model. Memory: each case is a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import subprocess
import sys
import time
import warnings

import torch
from torch import nn

from clustr_mm.analysis import knob_settings, measure, parse_setting, peak_mib

TOKENS_AT_800_1333 = 66_800  # 200 x 334


def build(name: str) -> nn.Module:
    """Builds a backbone: ``clustr_s``, ``clustr_s+recluster_every=0``, ``pvtv2_b2``, ..."""
    name, _, setting = name.partition('+')
    if name.startswith('clustr_'):
        from clustr_mm import ClusTR

        arch = {'t': 'tiny', 's': 'small', 'b': 'base'}[name[-1]]
        return ClusTR(arch=arch, **parse_setting(setting or 'exact'))
    import mmdet.models.backbones as backbones

    if name == 'pvtv2_b2':
        return backbones.PyramidVisionTransformerV2(embed_dims=64, num_layers=[3, 4, 6, 3])
    if name == 'swin_t':
        return backbones.SwinTransformer()
    if name == 'resnet50':
        return backbones.ResNet(50)
    raise SystemExit(
        f'error: model is {name!r}; use clustr_t, clustr_s, clustr_b, pvtv2_b2, swin_t or resnet50'
    )


def time_once(model: nn.Module, images: torch.Tensor, train: bool) -> float:
    """Seconds of one forward pass, or of a forward and a backward pass."""
    synchronise = torch.cuda.synchronize if images.is_cuda else lambda: None
    model.train(train)
    synchronise()
    start = time.perf_counter()
    with torch.set_grad_enabled(train):
        maps = model(images)
        if train:
            sum(m.square().mean() for m in maps).backward()
            model.zero_grad(set_to_none=True)
    synchronise()
    return time.perf_counter() - start


def speed(args: argparse.Namespace) -> None:
    """Prints a table of times and ratios to the last model; writes a CSV file if asked to."""
    device = torch.device(args.device)
    models = {name: build(name).to(device) for name in args.models}
    what = 'training step' if args.train else 'inference'
    machine = torch.cuda.get_device_name() if device.type == 'cuda' else platform.processor()
    print(
        f'{what}, batch {args.batch}, float32, torch {torch.__version__}, {device} {machine}, '
        f'{torch.get_num_threads()} threads, {args.rounds} rounds'
    )
    baseline = args.models[-1]
    rows = []
    for size in args.sizes:
        images = torch.randn(args.batch, 3, size, size, device=device)
        for model in models.values():
            time_once(model, images, args.train)  # warm up
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(args.rounds):
            for name, model in models.items():
                seconds[name].append(time_once(model, images, args.train))
        for name, times in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(times, seconds[baseline], strict=True))
            rows.append(
                dict(
                    size=size,
                    model=name,
                    seconds=round(statistics.median(times), 4),
                    fastest=round(min(times), 4),
                    ratio=round(ratio, 3),
                    baseline=baseline,
                )
            )
            print(
                f'{size:>5}  {name:<40} {statistics.median(times):8.3f} s'
                f'  {ratio:6.2f} x {baseline}',
                flush=True,
            )
    if args.csv:
        with open(args.csv, 'w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def memory_case(case: str) -> None:
    """Runs one case in this process and prints its peak in MiB."""
    from clustr_mm import dpc_knn

    if case.startswith('dpc_knn'):
        x = torch.randn(1, TOKENS_AT_800_1333, 64)
        dpc_knn(x[:, :3000], (49, 196))  # what loading code and starting threads need
        _, cost = measure(lambda: dpc_knn(x, (1043, 4172)), x.device)
        print(cost.peak_mib)
        return
    model = build(case).eval()
    images = torch.randn(1, 3, 800, 1333)
    with torch.no_grad():
        model(images)
    print(peak_mib())


def memory(args: argparse.Namespace) -> None:
    """Prints the peak memory of every case."""
    print(
        f'peak resident memory, torch {torch.__version__}, cpu, {torch.get_num_threads()} threads'
    )
    cases = [('dpc_knn', f'dpc_knn, {TOKENS_AT_800_1333} x 64, above its input')]
    if args.only != 'dpc_knn':
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


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    of_speed = commands.add_parser('speed', help='times of backbones, side by side')
    of_speed.add_argument(
        '--models',
        nargs='+',
        default=['clustr_s', 'pvtv2_b2'],
        help='the last is what the others are compared with; ClusTR takes options, as in '
        'clustr_s+recluster_every=0',
    )
    of_speed.add_argument('--sizes', nargs='+', type=int, default=[224, 512])
    of_speed.add_argument('--batch', type=int, default=4)
    of_speed.add_argument('--rounds', type=int, default=5)
    of_speed.add_argument('--train', action='store_true', help='forward and backward')
    of_speed.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    of_speed.add_argument('--csv', help='also write the table to this file')
    of_memory = commands.add_parser('memory', help='peak memory on a CPU')
    of_memory.add_argument('--only', choices=['dpc_knn'], help='leave the backbone out')
    of_case = commands.add_parser('memory-case', help='one case of memory, in this process')
    of_case.add_argument('case')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    if args.command == 'speed':
        speed(args)
    elif args.command == 'memory':
        memory(args)
    else:
        memory_case(args.case)


if __name__ == '__main__':
    main()
