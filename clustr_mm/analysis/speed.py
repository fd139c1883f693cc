"""Times models side by side: throughput, latency, memory, and ratios that a busy machine spares.

In every round each model runs once, one after the other, in one process with the same threads. The
ratio of two models is the median over rounds of the round's own ratio, so that a machine that
drifts or is shared favours none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from clustr_mm.analysis.measure import measure

# How long a model runs back to back in one round on a GPU, and at most how often.
_SECONDS_OF_A_ROUND = 0.25
_RUNS_OF_A_ROUND = 50


@dataclass(frozen=True)
class Step:
    """A forward pass of a model, or a training step, on one batch.

    Attributes:
        run: Does it.
        model: The model.
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


@dataclass(frozen=True)
class Timing:
    """What a step took, and how that compares.

    Attributes:
        latency: Seconds of one step by the clock, waited for; median over rounds.
        fastest: The least of these.
        seconds: Seconds a step, back to back; on a CPU the latency.
        cpu_seconds: Processor time of all threads of a step, median; None on a GPU.
        peak_mib: Highest memory in use, the model and its optimizer included; None where unknown.
        ratio: ``seconds`` as a multiple of the baseline's, median over rounds.
        cpu_ratio: The same of ``cpu_seconds``; None on a GPU.
    """

    latency: float
    fastest: float
    seconds: float
    cpu_seconds: float | None
    peak_mib: float | None
    ratio: float
    cpu_ratio: float | None


def backbone_step(
    model: nn.Module,
    images: Tensor,
    train: bool,
    dtype: torch.dtype = torch.float32,
    compile_mode: str | None = None,
) -> Step:
    """Makes a step of a backbone: images in, maps out.

    Args:
        model: The backbone; it is moved, and for inference converted.
        images: (B, 3, height, width).
        train: Forward, backward and AdamW (with a rate of 0: the weights stay what they are), under
            autocast for half precision; else a forward pass, all of it in ``dtype``.
        dtype: Precision.
        compile_mode: torch.compile's mode, or ``'aot_eager'``, its backend that traces and compiles
            nothing; None for eager.

    Returns:
        The step.
    """
    model.to(images.device)
    model.train(train)  # some of mmdet's return nothing
    compiled = _compiled(model, compile_mode)
    if not train:
        model.to(dtype)
        images = images.to(dtype)

        def infer() -> object:
            with torch.no_grad():
                return compiled(images)

        return Step(infer, model, None)
    wrapper = _optim_wrapper(model, dtype)

    def step() -> None:
        with _outer_context(wrapper, images.device, dtype), wrapper.optim_context(model):
            maps = compiled(images)
        wrapper.update_params(sum(m.float().square().mean() for m in maps))

    return Step(step, model, wrapper.optimizer)


def model_step(
    model: nn.Module,
    data: dict[str, Any],
    train: bool,
    dtype: torch.dtype = torch.float32,
    compile_mode: str | None = None,
) -> Step:
    """Makes a step of a whole model of an OpenMMLab library, from pixels to losses or results.

    Args:
        model: The model, where it shall run.
        data: A batch as its data loader gives it.
        train: As for ``backbone_step``; else ``test_step``, post-processing included.
        dtype: Precision; half precision by autocast.
        compile_mode: For the backbone, as for ``backbone_step``.

    Returns:
        The step.
    """
    model.train(train)
    device = next(model.parameters()).device
    model.backbone = _compiled(cast(nn.Module, model.backbone), compile_mode)
    if not train:

        def infer() -> object:
            with torch.no_grad(), _autocast(device, dtype):
                return cast(Any, model).test_step(data)

        return Step(infer, model, None)
    wrapper = _optim_wrapper(model, dtype)

    def step() -> None:
        with _outer_context(wrapper, device, dtype):
            cast(Any, model).train_step(data, wrapper)

    return Step(step, model, wrapper.optimizer)


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
    repeats: dict[str, int] = {}
    peaks: dict[str, float | None] = {}
    for name, step in steps.items():
        step.run()  # compiles, chooses kernels, makes the optimizer's state
        _, cost = measure(step.run, device)
        peaks[name] = None if cost.peak_mib is None else cost.peak_mib + step.held_mib()
        if device.type == 'cuda':
            fitting = int(_SECONDS_OF_A_ROUND / _time(step.run, device)[0])
            repeats[name] = min(max(fitting, 1), _RUNS_OF_A_ROUND)

    latency: dict[str, list[float]] = {name: [] for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            wall, processor = _time(step.run, device)
            latency[name].append(wall)
            cpu_seconds[name].append(processor)
            if device.type == 'cuda':
                wall = _time(step.run, device, repeats[name])[0]
            seconds[name].append(wall)
    on_cpu = device.type == 'cpu'
    return {
        name: Timing(
            latency=statistics.median(latency[name]),
            fastest=min(latency[name]),
            seconds=statistics.median(seconds[name]),
            cpu_seconds=statistics.median(cpu_seconds[name]) if on_cpu else None,
            peak_mib=peaks[name],
            ratio=_ratio(seconds[name], seconds[baseline]),
            cpu_ratio=_ratio(cpu_seconds[name], cpu_seconds[baseline]) if on_cpu else None,
        )
        for name in steps
    }


def _time(call: Callable[[], object], device: torch.device, times: int = 1) -> tuple[float, float]:
    """Seconds of a call by the clock and by the processor, the mean of some back to back."""
    synchronise = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    synchronise()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    synchronise()
    return (time.perf_counter() - wall) / times, (time.process_time() - processor) / times


def _ratio(values: list[float], baseline: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, baseline, strict=True))


def _compiled(model: nn.Module, mode: str | None) -> nn.Module:
    if mode is None:
        return model
    if mode == 'aot_eager':
        return cast(nn.Module, torch.compile(model, backend=mode))
    return cast(nn.Module, torch.compile(model, mode=mode))


def _optim_wrapper(model: nn.Module, dtype: torch.dtype) -> OptimWrapper:
    """AdamW in mmengine's wrapper; on a GPU in half precision the one that scales the loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    if dtype != torch.float32 and trained[0].is_cuda:
        return AmpOptimWrapper(dtype=str(dtype).removeprefix('torch.'), optimizer=optimizer)
    return OptimWrapper(optimizer)


def _outer_context(
    wrapper: OptimWrapper, device: torch.device, dtype: torch.dtype
) -> AbstractContextManager[Any]:
    """Autocast where the wrapper does not bring its own: mmengine's refuses a CPU."""
    return nullcontext() if isinstance(wrapper, AmpOptimWrapper) else _autocast(device, dtype)


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
