"""Export: the backbone or a segmentation model as a graph, ``torch.export``'s or ONNX's."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm.engine.errors import UserError
from clustr_mm.models import ClusterAttention, ClusTR

OPSET = 18
# Pixels. Below, a stage has one cluster or one row of tokens, which would be a graph of its own.
SMALLEST, LARGEST = 64, 2048
LARGEST_BATCH = 256
_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')

Module = TypeVar('Module', bound=nn.Module)


def make_exportable(model: Module, dynamic: bool = True) -> Module:
    """Copies a model for evaluation, its clustering without control flow that depends on data.

    Args:
        model: With ClusTR in it. ``crop_padding`` is turned off in the copy: a graph does not look
            for padding, so its images must all fill their batch.
        dynamic: Whether the graph must serve any number of tokens.

    Raises:
        UserError: If ``dynamic`` is asked of a model with windows.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, ClusTR):
            module.crop_padding = False
        if isinstance(module, ClusterAttention):
            if dynamic and module.cluster_window is not None:
                raise UserError(
                    f'cluster_window is {module.cluster_window}: windows depend on the size, which '
                    'a graph for any size does not know; export for one size (--static), or set it '
                    'to None'
                )
            module.backend = 'traceable'
    return model


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products, which serve maps of any size.

    Args:
        output_size: Height and width to pool to, or one number for both.
    """

    def __init__(self, output_size: int | Sequence[int]) -> None:
        super().__init__()
        both = [output_size] * 2 if isinstance(output_size, int) else output_size
        self.height, self.width = both

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, height, width)."""
        if self.height == self.width == 1:
            return x.mean((-2, -1), keepdim=True)
        return _bins(x, -2, self.height) @ x @ _bins(x, -1, self.width).T


def _bins(x: Tensor, dim: int, count: int) -> Tensor:
    """Weights of the places along a dimension in each bin, (count, length)."""
    length = x.shape[dim]
    place = torch.arange(length, device=x.device)
    index = torch.arange(count, device=x.device)[:, None]
    start = index * length // count
    end = ((index + 1) * length + count - 1) // count
    inside = ((place >= start) & (place < end)).to(x.dtype)
    return inside / inside.sum(1, keepdim=True)


class SegmentorGraph(nn.Module):
    """A segmentation model of mmseg, an ``EncoderDecoder``, as images in, class scores out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        from mmseg.models.utils import Upsample

        self.model = copy.deepcopy(model)
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Upsample) and child.scale_factor:
                    # mmseg's turns the size into a Python integer, which ends a graph for any size.
                    plain = nn.Upsample(None, child.scale_factor, child.mode, child.align_corners)
                    setattr(parent, name, plain)
                elif isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, AdaptivePool(cast(Any, child.output_size)))

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every class, (B, classes, H, W), of normalised images (B, C, H, W)."""
        scores = self.model.decode_head.forward(self.model.extract_feat(images))
        corners = self.model.decode_head.align_corners
        size = images.shape[2:]
        return F.interpolate(scores, size=size, mode='bilinear', align_corners=corners)


def to_program(module: nn.Module, size: Sequence[int], dynamic: bool = True) -> Any:
    """Exports a module by ``torch.export``, for batches of 1 to 256.

    Args:
        module: Takes images (B, C, H, W); with ClusTR in it.
        size: Height and width; with ``dynamic`` those of the example that is traced.
        dynamic: Whether the graph serves any size.

    Raises:
        UserError: If the module, or this torch, cannot be exported like this.
    """
    if 'custom_translation_table' not in inspect.signature(torch.onnx.export).parameters:
        raise UserError(f'torch {torch.__version__} is too old to export; use 2.9 or newer')
    if dynamic and not all(SMALLEST <= side <= LARGEST for side in size):
        raise UserError(
            f'the shape is {size[0]} x {size[1]}; a graph for any size takes sides from '
            f'{SMALLEST} to {LARGEST}, else export for one size with --static'
        )
    exportable = make_exportable(module, dynamic)
    dims = {0: torch.export.Dim('batch', min=1, max=LARGEST_BATCH)}
    if dynamic:
        dims[2] = torch.export.Dim('height', min=SMALLEST, max=LARGEST)
        dims[3] = torch.export.Dim('width', min=SMALLEST, max=LARGEST)
    # A batch of 1 would be taken for a constant.
    images = torch.randn(2, _channels(module), *size)
    try:
        with torch.no_grad():
            return torch.export.export(exportable, (images,), dynamic_shapes=(dims,), strict=False)
    except (torch._dynamo.exc.UserError, TypeError) as error:
        if not dynamic:
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), '')
        raise UserError(
            f'{type(module).__name__} cannot be exported for any size ({line}); export it for one '
            'with --static'
        ) from error


def to_onnx(program: Any, path: str) -> None:
    """Writes what ``to_program`` returned as an ONNX model of opset 18, with the weights in it.

    Raises:
        UserError: If a package is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {", ".join(missing)}; pip install {" ".join(missing)}')
    table: Any = {torch.ops.aten.sort.stable: _stable_sort}
    with _quiet():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=['images'],
            custom_translation_table=table,
        )
        assert onnx_program is not None
        onnx_program.save(path)


def differences(
    module: nn.Module, path: str, sizes: Sequence[Sequence[int]]
) -> dict[tuple[tuple[int, ...], str], float]:
    """Compares a written graph with the module, in exportable form, that it was made of.

    Args:
        module: The module, in evaluation mode.
        path: The graph: ``.pt2``, or an ONNX model, which ONNX Runtime computes.
        sizes: Heights and widths of images to compare on: one batch of noise and one of a single
            colour for each.

    Returns:
        The largest difference of an output's element, by size and kind of image; NaN if one of
        them is NaN.
    """
    compute = torch.export.load(path).module() if path.endswith('.pt2') else _onnx_runtime(path)
    found = {}
    for batch, size in enumerate(sizes, 1):
        generator = torch.Generator().manual_seed(batch)
        noise = torch.randn(batch, _channels(module), *size, generator=generator)
        for kind, images in (('random', noise), ('flat', torch.full_like(noise, 0.7))):
            with torch.no_grad():
                outs, expected = (
                    [maps] if isinstance(maps, Tensor) else maps
                    for maps in (compute(images), module(images))
                )
            largest = [(out - each).abs().max() for out, each in zip(outs, expected, strict=True)]
            found[tuple(size), kind] = torch.stack(largest).max().item()  # Python's max skips NaN
    return found


def _channels(module: nn.Module) -> int:
    """Channels of the images that a module takes: those of the ClusTR in it, else 3."""
    return next((each.in_channels for each in module.modules() if isinstance(each, ClusTR)), 3)


def _onnx_runtime(path: str) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: [
        torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})
    ]


def _stable_sort(
    values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """``aten::sort.stable`` in ONNX: TopK of all, which puts the lower of equal ones first."""
    from onnxscript import opset18 as op

    return op.TopK(values, op.Shape(values, start=dim), axis=dim, largest=int(descending), sorted=1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress and its warnings about itself out of the output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)
