"""Time and memory of a call, and of models side by side: the one clock of all measurements.

Models are compared in rounds: in every round each runs once, one after the other, in one process
with the same threads. The ratio of two is the median over rounds of the round's own ratio, so that
a machine that drifts or is shared favours none.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar('T')

# How long a model runs back to back in one round on a GPU, and at most how often.
_SECONDS_OF_A_ROUND = 0.25
_RUNS_OF_A_ROUND = 50


def time_call(
    call: Callable[[], object], device: torch.device, times: int = 1
) -> tuple[float, float]:
    """Makes a call, some times back to back.

    Args:
        call: What to time. Warm it up first: the first call also pays for loading kernels.
        device: Where it computes; it is waited for.
        times: How often.

    Returns:
        Seconds of one call by the clock, and of all threads of the processor, which a shared
        machine stretches less.
    """

    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    wait()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - wall) / times, (time.process_time() - processor) / times


def peak_memory(call: Callable[[], T], device: torch.device) -> tuple[T, float | None]:
    """Makes a call and watches the memory.

    Args:
        call: The call.
        device: Where it computes.

    Returns:
        The call's result, and the highest memory above what was in use before, in MiB, the result
        included: resident memory on a CPU, the allocator's on a GPU. None where the system does
        not say (a CPU without Linux).
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if sys.platform != 'linux':
        return call(), None
    # What malloc keeps of freed memory would hide a peak; glibc can give it back, musl need not.
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    in_use = _peak_resident()
    return call(), _peak_resident() - in_use


def _peak_resident() -> float:
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


@dataclass(frozen=True)
class Step:
    """A forward pass of a backbone, or a training step, on one batch.

    Attributes:
        run: Does it.
        model: The backbone.
        optimizer: What updates it; None for a forward pass.
    """

    run: Callable[[], object]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None

    def held_mib(self) -> float:
        """Memory that lasts from step to step: parameters, buffers, the optimizer's state."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def backbone_step(
    model: nn.Module,
    images: Tensor,
    train: bool,
    amp: torch.dtype | None = None,
    compile_mode: str | None = None,
) -> Step:
    """Makes a step of a backbone: images in, maps out.

    Args:
        model: The backbone; it is moved to the images' device.
        images: (B, 3, height, width).
        train: Forward, backward and AdamW (with a rate of 0: the weights stay what they are); else
            a forward pass.
        amp: Half precision of autocast; None for float32. float16 scales the loss on a GPU.
        compile_mode: torch.compile's mode, such as ``'default'``; None for eager.

    Returns:
        The step.
    """
    device = images.device
    model.to(device)
    model.train(train)  # some of mmdet's return nothing
    forward: Any = model if compile_mode is None else torch.compile(model, mode=compile_mode)
    autocast = torch.autocast(device.type, amp, enabled=amp is not None)
    if not train:

        def infer() -> object:
            with torch.no_grad(), autocast:
                return forward(images)

        return Step(infer, model, None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    # Before torch 2.3 it is not in torch.amp.
    scaler_type = getattr(torch.amp, 'GradScaler', None) or torch.cuda.amp.GradScaler
    scaler = scaler_type(enabled=amp == torch.float16 and device.type == 'cuda')

    def step() -> None:
        with autocast:
            maps = forward(images)
        scaler.scale(sum(m.float().square().mean() for m in maps)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return Step(step, model, optimizer)


def product_step(device: torch.device, dtype: torch.dtype | None = None) -> tuple[Step, int]:
    """Makes a step that multiplies large matrices, as fast as the device computes.

    Args:
        device: Where.
        dtype: Of the matrices; None for float32.

    Returns:
        The step, and its multiply-adds.
    """
    side = 4096 if device.type == 'cuda' else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return Step(lambda: matrix @ matrix, nn.Identity(), None), side**3


@dataclass(frozen=True)
class Timing:
    """What a step took, and how that compares.

    Attributes:
        seconds: By the clock, of one step back to back with others; median over rounds.
        cpu_seconds: Of all threads of the processor; median over rounds.
        ratio: ``seconds`` as a multiple of the baseline's, median over rounds.
        cpu_ratio: The same of ``cpu_seconds``.
        peak_mib: Highest memory in use, the model and its optimizer included; None where unknown.
    """

    seconds: float
    cpu_seconds: float
    ratio: float
    cpu_ratio: float
    peak_mib: float | None


def compare(steps: Mapping[str, Step], baseline: str, rounds: int) -> dict[str, Timing]:
    """Times steps in interleaved rounds.

    Args:
        steps: Steps by name, all on one device.
        baseline: The one that the others are compared with.
        rounds: How often each is timed.

    Returns:
        Timings by name.
    """
    device = next(steps[baseline].model.parameters()).device
    times = dict.fromkeys(steps, 1)
    peaks: dict[str, float | None] = {}
    for name, step in steps.items():
        step.run()  # compiles, chooses kernels, makes the optimizer's state
        _, peak = peak_memory(step.run, device)
        peaks[name] = None if peak is None else peak + step.held_mib()
        if device.type == 'cuda':
            fitting = int(_SECONDS_OF_A_ROUND / time_call(step.run, device)[0])
            times[name] = min(max(fitting, 1), _RUNS_OF_A_ROUND)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(time_call(step.run, device, times[name]))

    def median(name: str, clock: int, over: str | None = None) -> float:
        values = [each[clock] for each in taken[name]]
        if over is not None:
            values = [a / b[clock] for a, b in zip(values, taken[over], strict=True)]
        return statistics.median(values)

    return {
        name: Timing(
            seconds=median(name, 0),
            cpu_seconds=median(name, 1),
            ratio=median(name, 0, baseline),
            cpu_ratio=median(name, 1, baseline),
            peak_mib=peaks[name],
        )
        for name in steps
    }
