"""DPC-KNN on a GPU: the host side of the Triton kernels (``kernels.py``).

The steps are the definition's (``reference.py``):

    prepare   K0  x -> rounded, padded keys and their norms
    density   K1  keys -> r                         every pair of tokens once
    (sort)        r -> tokens by density
    score     K2  the same order -> score           half the pairs
    (sort)        score -> tokens by rank as a centre
    assign    K3  that order -> labels              tokens times centres, all scales at once

The host never waits for the device: no value is read back, so the whole can be captured in a CUDA
graph. Nothing is added by atomics and nothing is tuned at run time: equal input gives equal output.
Triton is imported when a kernel first runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clustr_mm.ops.clustering.reference import inverse_permutation
from clustr_mm.ops.dispatch import on_device_of, why_no_kernels

Precision = Literal['fp16', 'fp16x3']

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_CHANNELS = 512  # of which a tile still fits into every GPU's shared memory
_MAX_K = 33  # K1 holds k - 1 values for every place of a tile in registers
# A program takes 128 rows instead of 64, for half the traffic from the L2 cache, if padding to that
# costs little and if there are enough programs left to fill a large GPU twice.
_MANY_ROWS_FROM = 1024  # tokens of an image
_MANY_ROWS_FROM_BATCH = 2**15  # tokens of all images
_EXCHANGED = 8 * 1024  # bytes of it through which warps may meet
_SHARED_MEMORY = 96 * 1024  # bytes a program may use on every GPU of these capabilities
_REGISTERS = 128  # a thread: two programs of 256 threads share a multiprocessor


def can_run_triton(x: Tensor, k: int = 1) -> str | None:
    """Says why the Triton kernels cannot cluster these tokens.

    Args:
        x: Tokens, (B, N, C).
        k: Neighbours of the density estimate.

    Returns:
        The reason and, where there is one, the mend; None if they can.
    """
    if x.dtype not in _DTYPES:
        return f'x has dtype {x.dtype}; the kernels take float32, float16 and bfloat16'
    if x.shape[2] > _MAX_CHANNELS:
        return f'x has {x.shape[2]} channels; the kernels take up to {_MAX_CHANNELS}'
    if k > _MAX_K:
        return f'k is {k}; the kernels take up to {_MAX_K}'
    if _round_up(x.shape[1], 128) * _round_up(x.shape[2], 16) >= 2**30:  # twice that, 32-bit
        return f'x has {x.shape[1]} tokens; with {x.shape[2]} channels the kernels take fewer'
    return why_no_kernels('dpc_knn', x.device)


def dpc_knn_triton(
    x: Tensor, num_clusters: Sequence[int], k: int, precision: Precision = 'fp16x3'
) -> Tensor:
    """DPC-KNN with the results of the definition on operands rounded to a precision.

    Sums are float32 throughout. The default gives float32's results at nearly the speed of
    float16: the first kernel's time goes into selection more than into products, and two float16
    for each value hold 22 of float32's 24 bits. Operands are moved to an origin among the tokens
    and scaled by a power of two before, so that float16 has no range to lose.

    Args:
        x: Tokens, (B, N, C), float32, float16 or bfloat16; rounded once, so half precision needs
            no conversion before.
        num_clusters: Cluster counts, each from 1 to N.
        k: Neighbours of the density estimate, from 1 to N.
        precision: Of the operands: ``'fp16x3'`` (22 bits as two float16, three products) or
            ``'fp16'`` (11 bits).

    Returns:
        For each of S counts the cluster of every token, (S, B, N) int64: the rank of its centre.
    """
    total = x.shape[1]
    x = x.contiguous()
    counts = sorted(set(num_clusters))
    with on_device_of(x):
        tokens = prepare(x, precision)
        order = rank(tokens, density(tokens, k))
        labels = assign(tokens, order, [count for count in counts if count < total])
        if counts[-1] == total:  # where every token is a centre, its label is its own rank
            ranks = inverse_permutation(order[:, :total])
            labels = torch.cat([labels, ranks[None]])
    if counts == list(num_clusters):
        return labels
    return torch.stack([labels[counts.index(count)] for count in num_clusters])


@dataclass(frozen=True)
class PreparedTokens:
    """Tokens as the kernels want them: see ``prepare_kernel``.

    Attributes:
        keys: Rounded tokens, (B, N', C' or 2 C') float16.
        norm2: Their squared norms, (B, N') float32; +inf for padding.
        unit: Length of the keys' unit in x's, (B,) float32.
        tokens: N.
        channels: C.
        precision: Of the keys.
    """

    keys: Tensor
    norm2: Tensor
    unit: Tensor
    tokens: int
    channels: int
    precision: Precision

    @property
    def block_c(self) -> int:
        """Channels of a tile."""
        return _channel_block(self.keys.shape[2] // _parts(self.precision))


class Tile(NamedTuple):
    """Shape and resources of the programs of one launch.

    Attributes:
        rows: Tokens that a program keeps.
        columns: Tokens of a tile that streams past them.
        warps: Warps of a program.
        stages: Tiles in flight, the one in use included.
        registers: Registers a thread may use; None for any number.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None


def choose_tile(tokens: PreparedTokens, values: int) -> Tile:
    """Chooses the shape of the tiles by rule, so that no run ever waits for tuning.

    Args:
        tokens: The tokens; the rows kept and the stages of columns must fit the shared memory.
        values: float32 values held for every place of the tile, its product included. A thread
            has room for 80 of them when two programs of 256 threads share a multiprocessor, so
            that one multiplies while the other selects.

    Returns:
        The shape: ``rows`` divides N' and ``columns`` divides ``rows``; both are at least 16.
    """
    batch, _, width = tokens.keys.shape
    rows = _row_multiple(batch, tokens.tokens)
    return _choose_tile(rows, width, _parts(tokens.precision), values, tokens.keys.device)


@lru_cache(maxsize=1024)  # of a hundred launches an image, each would wait for it
def _choose_tile(rows: int, width: int, parts: int, values: int, device: torch.device) -> Tile:
    """The tile of at most so many rows, of keys of ``width`` float16 of that many parts."""
    shared_memory, major = _limits(device)
    row_bytes = 2 * width
    threads = 2 * rows
    columns = 64
    stages = 3 if row_bytes <= 256 else 2

    def taken() -> int:
        """Bytes of shared memory, as Triton 3.6 compiles it."""
        copies = stages
        if major == 10 and rows >= 64 and parts == 2:  # three products of the same columns
            copies += -(-width // parts // 64)
        return (rows + copies * columns) * row_bytes + _EXCHANGED

    # Columns first: fewer than 64 rows are too few for Hopper's matrix instructions.
    while columns > 16 and (rows * columns * values > 80 * threads or taken() > shared_memory):
        columns //= 2
    while rows > 16 and (rows * columns * values > 80 * threads or taken() > shared_memory):
        rows //= 2
    # Two programs of 256 threads share a multiprocessor if their registers let them. Before Hopper
    # the rows lie in registers, so that those would not be enough.
    two_fit = major == 9 and threads == 256 and 2 * taken() <= shared_memory
    return Tile(rows, columns, threads // 32, stages, _REGISTERS if two_fit else None)


def _smaller(tile: Tile) -> Tile | None:
    """The next smaller tile; None of the smallest."""
    if tile.columns > 16:
        return tile._replace(columns=tile.columns // 2)
    return tile._replace(rows=tile.rows // 2) if tile.rows > 16 else None


_too_large: set[tuple[Any, ...]] = set()  # launches that a device has refused


def _launch(
    kernel: Any, tokens: PreparedTokens, tile: Tile, *arguments: Any, **constants: Any
) -> None:
    """Launches K1, K2 or K3: a program for every ``tile.rows`` tokens of every image.

    Where the device has less room than the rule for tiles expects, the next smaller tile is taken.
    """
    from triton.runtime.errors import OutOfResources

    batch, padded, width = tokens.keys.shape
    while True:
        launch = (kernel, tile, width, tokens.precision, tokens.keys.device)
        smaller = _smaller(tile)
        if launch not in _too_large or smaller is None:
            try:
                kernel[(batch * (padded // tile.rows),)](
                    *arguments,
                    tokens.tokens,
                    padded,
                    WIDTH=width,
                    PRECISION=tokens.precision,
                    BLOCK_M=tile.rows,
                    BLOCK_N=tile.columns,
                    BLOCK_C=tokens.block_c,
                    num_warps=tile.warps,
                    num_stages=tile.stages,
                    maxnreg=tile.registers,
                    **constants,
                )
                return
            except OutOfResources:
                if smaller is None:
                    raise
                _too_large.add(launch)
        tile = smaller


@lru_cache
def _limits(device: torch.device) -> tuple[int, int]:
    """Bytes of shared memory that a program may use, and the major compute capability."""
    if device.type != 'cuda':
        return _SHARED_MEMORY, 8
    properties = torch.cuda.get_device_properties(device)
    shared_memory = getattr(properties, 'shared_memory_per_block_optin', _SHARED_MEMORY)
    return shared_memory, properties.major


def _row_multiple(batch: int, tokens: int) -> int:
    """What N is padded to a multiple of: the most rows that a program takes."""
    many = tokens >= _MANY_ROWS_FROM and batch * tokens >= _MANY_ROWS_FROM_BATCH
    return 128 if many else 64


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def prepare(x: Tensor, precision: Precision) -> PreparedTokens:
    """K0: moves, scales, rounds and pads tokens.

    Args:
        x: Tokens, (B, N, C), contiguous.
        precision: Of the operands.

    Returns:
        The tokens for the other kernels.
    """
    from clustr_mm.ops.clustering.kernels import prepare_kernel

    batch, total, channels = x.shape
    padded = _round_up(total, _row_multiple(batch, total))
    width = _round_up(channels, 16)
    tokens = PreparedTokens(
        x.new_empty((batch, padded, width * _parts(precision)), dtype=torch.float16),
        x.new_empty((batch, padded), dtype=torch.float32),
        x.new_empty(batch, dtype=torch.float32),
        total,
        channels,
        precision,
    )
    largest = torch.linalg.vector_norm(x, torch.inf, dim=(1, 2))
    prepare_kernel[(batch * (padded // 64),)](
        x,
        largest,
        tokens.keys,
        tokens.norm2,
        tokens.unit,
        total,
        padded,
        C=channels,
        PADDED_C=width,
        PRECISION=precision,
        BLOCK_N=64,
        BLOCK_C=tokens.block_c,
    )
    return tokens


def _parts(precision: Precision) -> int:
    """float16 values of a channel."""
    return 2 if precision == 'fp16x3' else 1


def _channel_block(width: int) -> int:
    """Channels of a tile: the largest of 64, 32 and 16 that divides C'."""
    return min(64, width & -width)


def density(tokens: PreparedTokens, k: int, tile: Tile | None = None) -> Tensor:
    """K1: log-density.

    Args:
        tokens: B images of N tokens.
        k: Neighbours, the token itself included.
        tile: Shape of the tiles; None to choose one.

    Returns:
        r, (B, N') float32; -inf for padding.
    """
    from clustr_mm.ops.clustering.kernels import density_kernel

    r = torch.empty_like(tokens.norm2)
    if k == 1:  # the token itself is the only neighbour
        r.zero_()[:, tokens.tokens :] = -torch.inf
        return r
    _launch(
        density_kernel,
        tokens,
        tile or choose_tile(tokens, values=k),
        tokens.keys,
        tokens.norm2,
        tokens.unit,
        r,
        C=tokens.channels,
        NEIGHBOURS=k - 1,
    )
    return r


def score(tokens: PreparedTokens, r: Tensor, tile: Tile | None = None) -> Tensor:
    """K2: score by the distance to the nearest denser token.

    Args:
        tokens: B images of N tokens.
        r: Log-density, (B, N').
        tile: Shape of the tiles; None to choose one.

    Returns:
        Scores, (B, N') float32; -inf for padding.
    """
    from clustr_mm.ops.clustering.kernels import score_kernel

    by_density = r.sort(dim=-1, descending=True, stable=True)  # padding last
    order = by_density.indices
    result = torch.empty_like(r)
    _launch(
        score_kernel,
        tokens,
        tile or choose_tile(tokens, values=2),
        tokens.keys.gather(1, order[..., None].expand_as(tokens.keys)),
        tokens.norm2.gather(1, order),
        tokens.unit,
        by_density.values,
        order,
        result,
        C=tokens.channels,
    )
    return result


def rank(tokens: PreparedTokens, r: Tensor) -> Tensor:
    """K2 and its sort: the tokens by rank as a centre.

    Args:
        tokens: B images of N tokens.
        r: Log-density, (B, N').

    Returns:
        Token indices from the best centre to the worst, (B, N') int64; as in the definition, of
        equal scores the lower index is first. Padding comes last.
    """
    return score(tokens, r).sort(dim=-1, descending=True, stable=True).indices


def assign(
    tokens: PreparedTokens, order: Tensor, counts: Sequence[int], tile: Tile | None = None
) -> Tensor:
    """K3: nearest centre of every token at every scale.

    Args:
        tokens: B images of N tokens.
        order: Token indices from the best centre to the worst, (B, N').
        counts: Ascending cluster counts, each from 1 to N - 1.
        tile: Shape of the tiles; None to choose one.

    Returns:
        Rank of the nearest centre, (S, B, N) int64.
    """
    from clustr_mm.ops.clustering.kernels import assign_kernel

    batch = len(order)
    labels = order.new_empty(len(counts), batch, tokens.tokens)
    if not counts:
        return labels
    _launch(
        assign_kernel,
        tokens,
        tile or choose_tile(tokens, values=3),
        tokens.keys,
        tokens.norm2,
        order,
        labels,
        tuple(counts),
        batch,
    )
    return labels
