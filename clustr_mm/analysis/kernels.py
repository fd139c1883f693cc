"""The Triton kernels one by one: right numbers, time against the floor, other shapes of tiles.

``clustering/triton_backend.py`` has their names, K0 to K5. The floor of a kernel is the larger of
two times: its operations over the rate of a large matrix product, and the bytes that it must move
over the rate of a large copy, both measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from clustr_mm.analysis.roofline import OPERANDS, time_call
from clustr_mm.ops.clustering import triton as backend
from clustr_mm.ops.clustering.reference import dpc_knn_reference
from clustr_mm.ops.clustering.triton import Precision, Tile
from clustr_mm.ops.merging import triton as merge_triton
from clustr_mm.ops.merging.merge import EPS

MULTIPROCESSORS = 132  # of an H200
K = 5  # neighbours of the density estimate, the token itself included


@dataclass(frozen=True)
class Ceilings:
    """What a device does at most.

    Attributes:
        operations: Of a large float16 matrix product, a second; a multiply-add is two.
        bytes: Of a large copy, a second, read and written ones.
    """

    operations: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a kernel must do.

    Attributes:
        operations: Of its matrix products; a multiply-add is two.
        bytes: That it must read and write in the device's memory.
        share: Of the device's multiprocessors that have work.
    """

    operations: float
    bytes: float
    share: float = 1.0

    def floor(self, ceilings: Ceilings) -> float:
        """The least seconds that it can take."""
        computing = self.operations / (ceilings.operations * self.share)
        return max(computing, self.bytes / ceilings.bytes)


def kernel_work(
    shape: tuple[int, int, int], element: int, counts: Sequence[int], precision: Precision
) -> dict[str, Work]:
    """What each kernel must do for some tokens.

    Args:
        shape: Of the tokens, (B, N, C).
        element: Bytes of a value of theirs.
        counts: Ascending cluster counts below N.
        precision: Of the operands.

    Returns:
        The work, K0 to K5, of which K0 to K3 are the clustering (K2 with its sort), K4 the merge
        to the last count, and K5 its backward pass.
    """
    batch, n, channels = shape
    dtype, products = OPERANDS[precision]
    width = (2 if precision == 'fp16x3' else 1) * channels
    keys = batch * n * width * dtype.itemsize
    values = batch * n * channels * element
    tokens, clusters = batch * n, batch * counts[-1] * channels
    row = 2 * batch * n * channels * products  # operations of a row of distances
    return {
        'K0 prepare': Work(0, 2 * values + keys),
        'K1 density': Work(row * n, keys + 8 * tokens),
        'K2 score': Work(row * n / 2, 3 * keys + 40 * tokens),
        'K3 assign': Work(row * counts[-1], keys + 8 * len(counts) * tokens),
        'K4 merge': Work(0, values + 12 * tokens + (element + 4) * clusters),
        'K5 merge backward': Work(0, 2 * values + 16 * tokens + (element + 4) * clusters),
    }


def clustering_work(
    shape: tuple[int, int, int], element: int, counts: Sequence[int], precision: Precision
) -> tuple[Work, int]:
    """What the clustering must do for some tokens, with the kernels that it takes for so many.

    Args:
        shape: Of the tokens, (B, N, C).
        element: Bytes of a value of theirs.
        counts: Ascending cluster counts below N.
        precision: Of the operands.

    Returns:
        The work, and the bytes of memory that it needs beside the tokens and the labels.
    """
    works = kernel_work(shape, element, counts, precision)
    parts = [works[key] for key in works if key < 'K4']
    batch, n, channels = shape
    if n > backend.WHOLE_IMAGE:
        keys = int(works['K1 density'].bytes)
        total = Work(sum(part.operations for part in parts), sum(part.bytes for part in parts))
        return total, 2 * keys  # and again by density
    _, products = OPERANDS[precision]
    padded = -(-n // 64) * 64
    facts = 16 * batch * padded
    pairs = batch * padded * (2 * padded + counts[-1])
    moved = parts[0].bytes + 2 * facts + 8 * len(counts) * batch * n
    share = min(1.0, batch / MULTIPROCESSORS)
    return Work(2 * pairs * channels * products, moved, share), int(parts[0].bytes) + facts


def measure_ceilings(device: torch.device, side: int) -> Ceilings:
    """Times a matrix product and a copy.

    Args:
        device: Where.
        side: Of the square matrices of random float16 numbers.

    Returns:
        The rates.
    """
    a, b = (torch.randn(side, side, device=device).half() for _ in range(2))
    out = torch.empty_like(a)
    seconds = time_call(lambda: torch.mm(a, b, out=out), device)
    source = torch.randn(8 * side * side, device=device)
    target = torch.empty_like(source)
    copying = time_call(lambda: target.copy_(source), device)
    moved = 2 * source.numel() * source.element_size()
    return Ceilings(2 * side**3 / seconds, moved / copying)


def operands(x: Tensor, precision: Precision) -> Tensor:
    """The tokens as the kernels see them: moved and rounded, in float64 and in x's units.

    Args:
        x: Tokens, (B, N, C).
        precision: Of the operands.

    Returns:
        (B, N, C).
    """
    prepared = backend.prepare(x.contiguous(), precision)
    keys = prepared.keys[:, : x.shape[1]].double()
    if precision == 'fp16x3':
        first, remainder = keys.chunk(2, dim=-1)
        keys = first + remainder
    return keys[..., : x.shape[2]] * prepared.unit[:, None, None].double()


def agreement(x: Tensor, precision: Precision) -> tuple[float, float]:
    """How many tokens go to the definition's centre.

    Args:
        x: Tokens, (B, N, C).
        precision: Of the kernels' operands.

    Returns:
        The share of these tokens, over two scales: with the definition on operands rounded the same
        way, and on x itself, both in float64.
    """
    tokens = x.shape[1]
    counts = [max(1, tokens // 16), max(1, tokens // 4), tokens]
    k = min(K, tokens)
    found = centres_of(backend.dpc_knn_triton(x, counts, k, precision))
    on_rounded, on_x = (
        centres_of(dpc_knn_reference(exact, counts, k))
        for exact in (operands(x, precision), x.double())
    )
    return share_equal(found, on_rounded), share_equal(found, on_x)


def centres_of(labels: Sequence[Tensor]) -> Tensor:
    """The tokens that are the centres of the tokens: labels are ranks, which near ties exchange.

    Args:
        labels: For each scale (B, N), and last every token's own rank, the labels for M = N.

    Returns:
        Token indices, (S, B, N), of all scales but the last.
    """
    *scales, ranks = labels
    order = ranks.argsort(-1)
    return torch.stack([order.gather(1, scale) for scale in scales])


def share_equal(a: Tensor, b: Tensor) -> float:
    """The share of equal entries of two tensors."""
    return (a == b).double().mean().item()


def merge_errors(x: Tensor, clusters: int) -> tuple[float, float]:
    """Errors of the merge and its gradients against float64, as multiples of plain PyTorch's.

    Args:
        x: Tokens, (B, N, C), whose dtype is used.
        clusters: M.

    Returns:
        The larger of the ratios for x's gradient and the merged tokens, and for the logits'
        gradient; a ratio is taken over plain PyTorch's error and a quarter of the dtype's eps.
    """
    labels = torch.randint(0, clusters, x.shape[:2], device=x.device)
    # Not wider: float16 has no weights below e^-17, and plain PyTorch would divide 0 by 0.
    logits = torch.randn(x.shape[:2], device=x.device).to(x.dtype)
    outcomes = []
    for dtype, merge in (
        (torch.float64, _plain_merge),
        (x.dtype, merge_triton.merge_triton),
        (x.dtype, _plain_merge),
    ):
        a, b = (t.detach().to(dtype).requires_grad_() for t in (x, logits))
        merged = merge(a, labels, clusters, b)
        merged.square().sum().backward()
        outcomes.append([t.detach() for t in (merged, a.grad, b.grad) if t is not None])
    ratios = [error_ratio(b, c, a) for a, b, c in zip(*outcomes, strict=True)]
    return max(ratios[:2]), ratios[2]


def error_ratio(found: Tensor, plain: Tensor, exact: Tensor) -> float:
    """A kernel's error as a multiple of plain PyTorch's.

    Args:
        found: Of the kernel.
        plain: Of plain PyTorch at the same precision.
        exact: In float64.

    Returns:
        The ratio, over plain PyTorch's error and a quarter of its dtype's eps.
    """
    error, allowed = (torch.linalg.vector_norm(t.double() - exact) for t in (found, plain))
    allowance = torch.finfo(plain.dtype).eps / 4 * torch.linalg.vector_norm(exact)
    return (error / (allowed + allowance)).item()


def _plain_merge(x: Tensor, labels: Tensor, clusters: int, logits: Tensor) -> Tensor:
    """The merge in x's own dtype throughout, from the formula of merge.py."""
    largest = logits.amax(1, keepdim=True).detach()
    weight = (logits - largest).exp()
    zeros = x.new_zeros(x.shape[0], clusters, x.shape[2])
    index = labels[..., None].expand_as(x)
    numerator = zeros.scatter_add(1, index, x * weight[..., None])
    total = zeros[..., 0].scatter_add(1, labels, weight)
    return numerator / (total + EPS * (-largest).exp())[..., None]


def time_kernels(
    x: Tensor, counts: Sequence[int], precision: Precision
) -> Iterator[tuple[str, float, Work]]:
    """Times every kernel on the same tokens.

    Args:
        x: Tokens, (B, N, C).
        counts: Ascending cluster counts below N.
        precision: Of the operands.

    Yields:
        The kernels' names, K0 to K5, their seconds, and what they must do.
    """
    tokens = backend.prepare(x, precision)
    r = backend.density(tokens, K)
    order = backend.rank(tokens, r)
    labels = backend.assign(tokens, order, counts)[-1]
    logits = x[..., 0].float().contiguous()
    assignments: list[Tensor | None] = [labels]
    merge = partial(merge_triton._merge, x, assignments, [counts[-1]], logits, None, None)
    merged, *saved, _ = merge()
    grad = torch.randn_like(merged)
    calls: tuple[Callable[[], object], ...] = (
        partial(backend.prepare, x, precision),
        partial(backend.density, tokens, K),
        partial(backend.score, tokens, r),
        partial(backend.assign, tokens, order, counts),
        merge,
        lambda: merge_triton._merge_backward(
            grad, x, assignments, [counts[-1]], logits, None, *saved
        ),
    )
    batch, n, channels = x.shape
    works = kernel_work((batch, n, channels), x.element_size(), counts, precision)
    for (name, work), call in zip(works.items(), calls, strict=True):
        yield name, time_call(call, x.device, 0.3), work


def sweep_tiles(
    x: Tensor, counts: Sequence[int], precision: Precision, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[str, Tile, float | str]]:
    """Times the clustering's kernels with other shapes of tiles than the rule's.

    Args:
        x: Tokens, (B, N, C).
        counts: Ascending cluster counts below N.
        precision: Of the operands.
        shapes: Rows, columns and warps; each is tried with 2 and 3 stages, with and without a limit
            of registers.

    Yields:
        Kernel, tile and seconds, or why it does not run; first the tile that the rule chooses.
    """
    tokens = backend.prepare(x, precision)
    r = backend.density(tokens, K)
    order = backend.rank(tokens, r)
    calls: dict[str, tuple[int, Callable[..., Tensor]]] = {
        'K1 density': (K, partial(backend.density, tokens, K)),
        'K2 score': (2, partial(backend.score, tokens, r)),
        'K3 assign': (3, partial(backend.assign, tokens, order, counts)),
    }
    chosen = {name: backend.choose_tile(tokens, values) for name, (values, _) in calls.items()}
    others = [
        Tile(*shape, stages, registers)
        for shape, stages, registers in product(shapes, (2, 3), (128, None))
        if tokens.keys.shape[1] % shape[0] == 0 and shape[0] % shape[1] == 0
    ]
    for tile in (None, *others):
        for name, (_, call) in calls.items():
            shape = tile or chosen[name]
            if tile is not None and tile == chosen[name]:
                continue
            try:
                yield name, shape, time_call(partial(call, tile=shape), x.device, 0.05)
            except Exception as error:  # Triton has no one class for what a device has not
                if 'out of resource' not in str(error).lower():
                    raise
                yield name, shape, 'out of resources'
