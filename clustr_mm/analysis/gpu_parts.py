"""The parts of the check on a GPU: each takes a device and sizes, and yields what it reads.

``tools/analysis/gpu_check.py`` runs each in a process of its own and judges the readings
(``verdicts.py``). At ``TINY`` sizes, under Triton's interpreter, all of them run on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from unittest.mock import patch

import torch

from clustr_mm.analysis.block_kernels import (
    add_norm_errors,
    attention_errors,
    conv_gelu_errors,
    time_attention,
    time_conv_gelu,
)
from clustr_mm.analysis.gpu_sizes import Reading, Sizes
from clustr_mm.analysis.growth import exponents, measure_growth, plot_growth
from clustr_mm.analysis.kernels import (
    K,
    agreement,
    centres_of,
    measure_ceilings,
    merge_errors,
    share_equal,
    sweep_tiles,
    time_kernels,
)
from clustr_mm.analysis.measure import measure
from clustr_mm.analysis.peers import build_backbone
from clustr_mm.analysis.roofline import cluster_counts, product_of, time_call, why_not_backend
from clustr_mm.analysis.speed import Step, Timing, backbone_step, compare, model_step
from clustr_mm.analysis.tasks import build_task, make_batch, why_not_task
from clustr_mm.ops.clustering import dpc_knn
from clustr_mm.ops.clustering import triton as backend
from clustr_mm.ops.clustering.triton import Precision

PRECISIONS: tuple[Precision, ...] = ('fp16x3', 'fp16', 'tf32', 'ieee')
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def correctness(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """The kernels' results: labels, the merge, and whether repeats are equal."""
    reading = partial(Reading, 'correctness')
    for batch, n, channels in sizes.checked:
        for dtype in DTYPES:
            for precision in PRECISIONS if dtype == torch.float32 else PRECISIONS[:2]:
                torch.manual_seed(n)
                x = (torch.randn(batch, n, channels, device=device) + 3).to(dtype)
                subject = f'{batch} x {n} x {channels}, {_name(dtype)}, {precision}'
                rounded, exact = agreement(x, precision)
                yield reading(
                    subject, 'tokens with the centre of the definition on rounded operands', rounded
                )
                yield reading(subject, 'tokens with the centre of the definition', exact)
            subject = f'{batch} x {n} x {channels}, {_name(dtype)}'
            of_values, of_logits = merge_errors(x, max(1, n // 4))
            yield reading(subject, "merge's error / plain PyTorch's", of_values)
            yield reading(subject, "logits' gradient's error / plain PyTorch's", of_logits)
    for shape in sizes.mlp:
        for dtype in DTYPES:
            batch, height, width, channels = shape
            subject = ' x '.join(map(str, shape)) + f', {_name(dtype)}'
            of_mlp = conv_gelu_errors(shape, dtype, device)
            yield reading(subject, "MLP's error / plain PyTorch's", max(of_mlp))
            of_sum = add_norm_errors((batch, height * width, channels // 8), dtype, device)
            yield reading(subject, "residual sum's error / plain PyTorch's", max(of_sum))
    for attended in sizes.attention:
        # Triton's interpreter has no products of bfloat16.
        for dtype in DTYPES[1:] if device.type == 'cuda' else DTYPES[1:2]:
            subject = ' x '.join(map(str, attended)) + f', {_name(dtype)}'
            of_sum = attention_errors(attended, dtype, device)
            yield reading(subject, "attention's error / plain PyTorch's", max(of_sum))
    different = 0
    for seed in range(sizes.repeats):
        torch.manual_seed(seed % 4)
        x = torch.randn(1, sizes.tokens, sizes.channels, device=device)
        labels = backend.dpc_knn_triton(x, cluster_counts(sizes.tokens), K)
        again = backend.dpc_knn_triton(x, cluster_counts(sizes.tokens), K)
        different += sum(not torch.equal(a, b) for a, b in zip(labels, again, strict=True))
    yield reading(f'{sizes.tokens} tokens, 4 seeds', 'repeats with other labels', different)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def clustering(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """``dpc_knn`` by itself: time, memory, the roofline, the kernels, others' kernels."""
    reading = partial(Reading, 'clustering')
    n, channels = sizes.tokens, sizes.channels
    counts = cluster_counts(n)
    torch.manual_seed(0)
    x = torch.randn(1, n, channels, device=device)
    ceilings = measure_ceilings(device, sizes.ceiling)
    yield reading('device', 'TFLOP/s, float16 matrix product', ceilings.operations / 1e12)
    yield reading('device', 'GB/s, copy', ceilings.bytes / 1e9)
    plain = centres_of(dpc_knn(x, [*counts, n], backend='tiled'))
    for precision in PRECISIONS:
        call = partial(backend.dpc_knn_triton, x, counts, K, precision)
        seconds = time_call(call, device)
        product = time_call(product_of(precision, 1, n, channels, device), device)
        _, cost = measure(call, device)
        subject = f'dpc_knn, {precision}'
        yield reading(subject, 'ms', 1e3 * seconds)
        yield reading(subject, 'ms of a matrix product of the same size', 1e3 * product)
        yield reading(subject, 'time / that product', seconds / product)
        if cost.peak_mib is not None:
            yield reading(subject, 'MB above the input', cost.peak_mib * 2**20 / 1e6)
        found = centres_of(backend.dpc_knn_triton(x, [*counts, n], K, precision))
        yield reading(subject, "tokens with the centre of 'tiled'", share_equal(found, plain))
    for precision in PRECISIONS[:2]:
        for name, seconds, work in time_kernels(x, counts, precision):
            share = work.floor(ceilings) / seconds
            yield reading(f'{name}, {precision}', 'ms', 1e3 * seconds)
            yield reading(f'{name}, {precision}', 'share of the floor', share)
    few = torch.randn(sizes.few, device=device).to(sizes.dtype)
    some = [max(1, sizes.few[1] // 4)]
    subject = 'dpc_knn, fp16, ' + ' x '.join(map(str, sizes.few))
    for limit, how in ((backend.WHOLE_IMAGE, 'one launch'), (0, 'kernel after kernel')):
        with patch.object(backend, 'WHOLE_IMAGE', limit):
            seconds = time_call(partial(backend.dpc_knn_triton, few, some, K, 'fp16'), device)
        yield reading(f'{subject}, {how}', 'ms', 1e3 * seconds)
    yield from _others(x, counts, reading)


def block(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """GELU(u + DWConv(u)) and the attention by themselves: the kernels beside plain PyTorch."""
    for mlp in sizes.mlp:
        yield from _beside_plain('mlp', mlp, time_conv_gelu(mlp, sizes.dtype, device))
    for attended in sizes.attention:
        times = time_attention(attended, sizes.dtype, device)
        yield from _beside_plain('attention', attended, times)


def _beside_plain(
    name: str, shape: tuple[int, ...], times: dict[str, tuple[float, float]]
) -> Iterator[Reading]:
    where = ' x '.join(map(str, shape))
    for form, seconds in times.items():
        subject = f'{name}, {form}, {where}'
        yield Reading('block', subject, 'ms, forward', 1e3 * seconds[0])
        yield Reading('block', subject, 'ms, forward and backward', 1e3 * seconds[1])
    for what, ours, theirs in zip(('forward', 'both'), *times.values(), strict=True):
        quantity = f'{what}: time / plain PyTorch'
        yield Reading('block', f'{name}, {where}', quantity, ours / theirs)


def profile(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """Where the training step's time goes: the kernels that take most of it, and to the host.

    A step that takes longer by the clock than its kernels do waits for the host.
    """
    activity = torch.profiler.ProfilerActivity
    on_gpu = device.type == 'cuda'
    for name in (sizes.model, sizes.baseline):
        model, _ = build_backbone(name, (sizes.side, sizes.side))
        images = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=device)
        step = backbone_step(model, images, True, sizes.dtype)
        timing = compare({name: step}, name, sizes.rounds)[name]
        activities = [activity.CPU, activity.CUDA] if on_gpu else [activity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            step.run()
            if on_gpu:
                torch.cuda.synchronize(device)
        events = profiler.key_averages()
        time_of = attrgetter('self_device_time_total' if on_gpu else 'self_cpu_time_total')
        where = f'{name}, training, {sizes.side}x{sizes.side}, batch {sizes.batch}'
        yield Reading('profile', where, 'ms by the clock', 1e3 * timing.seconds)
        yield Reading('profile', where, 'ms of all kernels', sum(map(time_of, events)) / 1e3)
        for event in sorted(events, key=time_of, reverse=True)[: sizes.kernels]:
            note = f'{event.count} calls'
            yield Reading('profile', f'{where}: {event.key}', 'ms', time_of(event) / 1e3, note)


def _others(
    x: torch.Tensor, counts: tuple[int, int], reading: Callable[..., Reading]
) -> Iterator[Reading]:
    """flash-kmeans' assignment plus flashlib's nearest neighbours, against K1 and K3."""
    subject = 'flash-kmeans + flashlib'
    try:
        neighbours = import_module('flashlib').flash_knn
        assignment = import_module('flash_kmeans.assign_euclid_triton').euclid_assign_triton
    except Exception as error:  # they try their own kernels when they are imported
        yield reading(subject, 'skipped', None, f'cannot be imported ({error})')
        return
    half = x.half()
    prepared = backend.prepare(x, 'fp16')
    order = backend.rank(prepared, backend.density(prepared, K))
    centres = half.gather(1, order[:, : counts[-1], None].expand(-1, -1, x.shape[2]))
    norm2 = half.float().square().sum(-1)
    theirs = time_call(
        lambda: neighbours(half, half, K, return_distances=False), x.device
    ) + time_call(lambda: assignment(half, centres, norm2), x.device)
    ours = time_call(lambda: backend.density(prepared, K), x.device) + time_call(
        lambda: backend.assign(prepared, order, counts), x.device
    )
    yield reading(subject, 'ms', 1e3 * theirs)
    yield reading('K1 + K3, fp16', 'ms', 1e3 * ours)
    yield reading('K1 + K3, fp16', 'time / theirs', ours / theirs)


def eager(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """Backbones by themselves: at 224, then training steps at larger sizes."""
    names = (sizes.model, *sizes.peers, sizes.baseline)
    yield from _backbones('eager', device, sizes, names, None)
    for batch, *shape in sizes.alone:
        windows = f'{sizes.model}+cluster_window=56'
        larger = replace(sizes, batch=batch)
        yield from _backbones(
            'eager',
            device,
            larger,
            (sizes.model, windows, sizes.baseline),
            None,
            (shape[0], shape[1]),
        )


def compiled(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """Backbones by themselves at 224, compiled."""
    names = (sizes.model, sizes.baseline)
    yield from _backbones('compiled', device, sizes, names, sizes.compile_mode)


def _backbones(
    part: str,
    device: torch.device,
    sizes: Sizes,
    names: tuple[str, ...],
    mode: str | None,
    shape: tuple[int, int] | None = None,
) -> Iterator[Reading]:
    height, width = shape or (sizes.side, sizes.side)
    for train in (True,) if shape else (False, True):
        steps: dict[str, Step] = {}
        for name in names:
            model, library = build_backbone(name, (height, width))
            images = torch.randn(sizes.batch, 3, height, width, device=device)
            steps[name] = backbone_step(model, images, train, sizes.dtype, mode)
            if name == sizes.baseline:
                yield Reading(part, name, 'library', None, library)
        where = f'{height}x{width}, batch {sizes.batch}'
        what = f'{"training" if train else "inference"}, {where}'
        yield from _timings(part, what, sizes.batch, compare(steps, sizes.baseline, sizes.rounds))


def _timings(part: str, what: str, batch: int, timings: dict[str, Timing]) -> Iterator[Reading]:
    """The readings of a comparison; the baseline is the last."""
    *_, baseline = timings
    for name, timing in timings.items():
        reading = partial(Reading, part, f'{name}, {what}')
        yield reading('images/s', batch / timing.seconds)
        yield reading('latency, ms', 1e3 * timing.latency)
        yield reading(f'throughput / {baseline}', 1 / timing.ratio)
        least = timings[baseline].peak_mib
        if timing.peak_mib is not None and least:
            yield reading('peak MiB', timing.peak_mib)
            yield reading(f'peak memory / {baseline}', timing.peak_mib / least)


def models(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """Training steps of whole models, mixed precision: UperNet and Mask R-CNN."""
    for task, (batch, *sides) in (('upernet', sizes.upernet), ('mask_rcnn', sizes.mask_rcnn)):
        reason = why_not_task(task, device)
        if reason is not None:
            yield Reading('models', task, 'skipped', None, reason)
            continue
        names = [sizes.model, sizes.baseline]
        if task == 'mask_rcnn':
            names.insert(1, f'{sizes.model}+cluster_window=None')
        shape = (sides[0], sides[1])
        overrides = dict(sizes.overrides) if task == 'mask_rcnn' else {}
        # mmcv's RoIAlign on a CPU takes float32 alone.
        dtype = sizes.dtype if device.type == 'cuda' else torch.float32
        steps = {}
        for name in names:
            model = build_task(task, name, shape, overrides)
            data = make_batch(task, batch, shape, device)
            steps[name] = model_step(model.to(device), data, True, dtype)
        what = f'{task} training, {shape[0]}x{shape[1]}, batch {batch}'
        yield from _timings('models', what, batch, compare(steps, sizes.baseline, sizes.rounds))


def growth(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """Time and memory of every backend over N, with a picture."""
    points = {}
    x = torch.zeros(1, min(sizes.growth), sizes.channels, device=device)
    for name in ('triton', 'tiled', 'native', 'reference'):
        if why_not_backend(name, x) is not None:
            continue
        points[name] = list(measure_growth(name, sizes.growth, sizes.channels, device))
        for point in points[name]:
            subject = f'{name}, {point.tokens} tokens'
            yield Reading('growth', subject, 'ms', 1e3 * point.seconds)
            yield Reading('growth', subject, 'MiB above the input', point.peak_mib)
        of_time, of_memory = exponents(points[name])
        yield Reading('growth', name, "time's exponent", of_time)
        yield Reading('growth', name, "memory's exponent", of_memory)
    plot_growth(points, folder / 'growth.png', f'dpc_knn, {sizes.channels} channels, {device}')


def tiles(device: torch.device, sizes: Sizes, folder: Path) -> Iterator[Reading]:
    """Other shapes of tiles than those that the rule chooses."""
    torch.manual_seed(0)
    x = torch.randn(1, sizes.tokens, sizes.channels, device=device)
    counts = cluster_counts(sizes.tokens)
    seen: set[str] = set()
    for name, tile, seconds in sweep_tiles(x, counts, 'fp16x3', sizes.tiles):
        note = '' if name in seen else 'chosen'
        seen.add(name)
        subject = f'{name}, ' + ' '.join(f'{k}={v}' for k, v in tile._asdict().items())
        if isinstance(seconds, str):
            yield Reading('tiles', subject, 'skipped', None, seconds)
        else:
            yield Reading('tiles', subject, 'ms', 1e3 * seconds, note)


PARTS: dict[str, Callable[[torch.device, Sizes, Path], Iterator[Reading]]] = {
    'correctness': correctness,
    'clustering': clustering,
    'block': block,
    'eager': eager,
    'models': models,
    'compiled': compiled,
    'growth': growth,
    'tiles': tiles,
    'profile': profile,
}
