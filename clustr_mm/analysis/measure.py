"""Time and peak memory of one call, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar('T')


@dataclass(frozen=True)
class Cost:
    """What a call took.

    Attributes:
        seconds: On a CPU the processor time of all its threads, which a shared machine stretches
            less than the clock; on a GPU the device's time.
        peak_mib: Highest memory above what was in use before, in MiB: resident memory on a CPU,
            the allocator's on a GPU. None where the system does not say (a CPU without Linux).
    """

    seconds: float
    peak_mib: float | None


def measure(call: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    """Makes a call and measures it.

    Args:
        call: What to measure; its result's memory is counted.
        device: Where it computes. Warm it up first: the first call also pays for loading kernels.

    Returns:
        The call's result and its cost.
    """
    return _measure_on_gpu(call, device) if device.type == 'cuda' else _measure_on_cpu(call)


def peak_mib(reset: bool = False) -> float:
    """The process's highest resident memory in MiB (Linux); ``reset`` lowers it to the present."""
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def _measure_on_cpu(call: Callable[[], T]) -> tuple[T, Cost]:
    _return_freed_memory()
    linux = sys.platform == 'linux'
    before = peak_mib(reset=True) if linux else 0.0
    start = time.process_time()
    result = call()
    seconds = time.process_time() - start
    return result, Cost(seconds, peak_mib() - before if linux else None)


def _measure_on_gpu(call: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        start.record()
        result = call()
        end.record()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return result, Cost(start.elapsed_time(end) / 1000, peak / 2**20)


def _return_freed_memory() -> None:
    """Hands what was freed back to the system: pages that malloc keeps would hide a peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None
    if trim is not None:  # glibc has it, musl does not
        trim(0)
