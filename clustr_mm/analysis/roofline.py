"""The clustering alone: its time against that of a matrix product of the same size.

DPC-KNN needs the distance of every pair of tokens, and distances are a matrix product: N x C times
C x N. What a library takes for that product on the same device, at the same precision of operands,
in the same run, is what no clustering by distances should be asked to beat by much. The share of
the roofline is that time over the clustering's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from clustr_mm.ops.clustering import BACKENDS, can_run_native, can_run_triton
from clustr_mm.ops.clustering.triton import Precision

# Elements of one tile of the product: what stays in a CPU's caches, or fills a GPU.
_TILE_CPU = 2**21
_TILE_GPU = 2**28
_FLUSH = 2**28  # bytes, more than a GPU's cache
_RUNS = 30
_REFERENCE_TOKENS = 3200  # of which the definition's N x N matrices take 2 GB

# Operands: what the kernels multiply at each precision, and how many products make one distance.
OPERANDS: dict[Precision, tuple[torch.dtype, int]] = {
    'fp16x3': (torch.float16, 3),
    'fp16': (torch.float16, 1),
    'tf32': (torch.float32, 1),
    'ieee': (torch.float32, 1),
}


def time_call(call: Callable[[], object], device: torch.device, seconds: float = 0.5) -> float:
    """Median time of a call: of the device's clock, on a CPU of all the processor's threads.

    Args:
        call: What to time; it runs once before.
        device: Where it computes.
        seconds: About how long to go on; at least three runs, at most 30.

    Returns:
        Seconds.
    """
    call()
    times: list[float] = []
    if device.type != 'cuda':
        start = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - start < seconds and len(times) < _RUNS):
            begin = time.process_time()
            call()
            times.append(time.process_time() - begin)
        return statistics.median(times)
    # Small inputs would lie in the cache from the run before.
    flush = torch.empty(_FLUSH, dtype=torch.int8, device=device)
    start = time.perf_counter()
    while len(times) < 4 or (time.perf_counter() - start < seconds and len(times) <= _RUNS):
        flush.zero_()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        call()
        events[1].record()
        torch.cuda.synchronize(device)
        times.append(events[0].elapsed_time(events[1]) / 1000)
    return statistics.median(times[1:])


def matrix_product(
    batch: int, tokens: int, channels: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """Makes the matrix product of the same size: every image's tokens with themselves.

    Args:
        batch: Images B.
        tokens: Tokens N.
        channels: Channels C.
        dtype: Of operands and results.
        device: Where.

    Returns:
        A call that computes (B, N, N) in tiles, one over the other: nothing of that size is kept.
    """
    size = _TILE_CPU if device.type == 'cpu' else _TILE_GPU
    x = torch.randn(batch, tokens, channels, device=device).to(dtype)
    small = batch * tokens * tokens <= size
    rows = max(1, min(tokens, size // tokens))
    tile = x.new_empty(batch, tokens, tokens) if small else x.new_empty(rows, tokens)

    def product() -> None:
        if small:
            torch.bmm(x, x.transpose(1, 2), out=tile)
            return
        for image in x:
            for part in image.split(rows):
                torch.mm(part, image.T, out=tile[: len(part)])

    return product


def product_of(
    precision: Precision, batch: int, tokens: int, channels: int, device: torch.device
) -> Callable[[], None]:
    """The matrix product over what the Triton kernels multiply at a precision.

    Args:
        precision: Of the operands. For ``'fp16x3'`` the product has 3 C columns: three float16
            products make one distance.
        batch: Images B.
        tokens: Tokens N.
        channels: Channels C.
        device: Where.

    Returns:
        The call.
    """
    dtype, products = OPERANDS[precision]
    call = matrix_product(batch, tokens, products * channels, dtype, device)

    def product() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
        try:
            call()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product


def why_not_backend(backend: str, x: Tensor) -> str | None:
    """Says why a backend is left out of measurements of some tokens; None if it is not.

    Args:
        backend: One of ``clustr_mm.ops.clustering.BACKENDS``.
        x: Tokens, (B, N, C).

    Returns:
        The reason.
    """
    if backend not in BACKENDS:
        return f'there is no such backend; use one of {", ".join(BACKENDS)}'
    if backend == 'reference' and x.shape[0] * x.shape[1] ** 2 > _REFERENCE_TOKENS**2:
        return f'its memory grows with the square of the tokens; here up to {_REFERENCE_TOKENS}'
    if backend == 'native':
        return can_run_native(x.float())
    if backend == 'triton':
        if not x.is_cuda:
            return 'Triton interprets its kernels on a CPU, which is no speed to measure'
        return can_run_triton(x, 5)
    return None


def cluster_counts(tokens: int) -> tuple[int, int]:
    """The two scales' counts of a stage 1 with so many tokens: 1/64 and 1/16 of them."""
    coarse = max(1, tokens // 64)
    return coarse, min(tokens, 4 * coarse)
