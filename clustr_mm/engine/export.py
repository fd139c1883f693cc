"""Export: the backbone or a library's model as a graph, ``torch.export``'s or ONNX's."""

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


class ModelGraph(nn.Module):
    """A library's model as a graph: normalised images in, what the network computes of them out.

    Args:
        model: Of the library. A copy is taken.

    Attributes:
        output_names: Of the tensors that come out; empty where nobody has named them.
        input_size: Height and width of the images that the model is for; None where it has none.
        any_size: Whether the network, with its sizes as they are, could take other images.
        left_out: What the library does after the graph, for a reader.
    """

    output_names: Sequence[str] = ()
    input_size: tuple[int, int] | None = None
    any_size = True
    left_out = ''

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, AdaptivePool(cast(Any, child.output_size)))


class ClassifierGraph(ModelGraph):
    """A classifier of mmpretrain: logits and probabilities, (B, classes) each.

    Raises:
        UserError: If the model has no head of classes.
    """

    output_names = ('logits', 'probabilities')

    def __init__(self, model: Any) -> None:
        from mmpretrain.models.heads import ClsHead, MultiLabelClsHead

        head = getattr(model, 'head', None)
        # By what its library makes of the logits: a head of numbers makes neither.
        known: dict[Any, Callable[[Tensor], Tensor]] = {
            ClsHead._get_predictions: _softmax,
            MultiLabelClsHead._get_predictions: torch.sigmoid,
        }
        own = getattr(type(head), '_get_predictions', None)
        if own not in known:
            raise _no_graph(model, head, 'gives no classes')
        super().__init__(model)
        self.probabilities = known[own]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to the model's classes."""
        logits = self.model.head(self.model.extract_feat(images))
        return logits, self.probabilities(logits)


class PoseGraph(ModelGraph):
    """A pose estimator of mmpose: what its head computes, before it is decoded.

    Raises:
        UserError: If the model has no head.
    """

    left_out = 'finding the persons, the flip test, and decoding to keypoints'

    def __init__(self, model: Any) -> None:
        from mmpose.models.heads import HeatmapHead

        if not getattr(model, 'with_head', False):
            raise _no_graph(model, None, 'gives no keypoints')
        super().__init__(model)
        head = self.model.head
        if hasattr(head, 'simcc_split_ratio'):
            self.output_names = ('simcc_x', 'simcc_y')
        elif isinstance(head, HeatmapHead):
            self.output_names = ('heatmaps',)
        size = getattr(head, 'input_size', None) or getattr(head.decoder, 'input_size', None)
        if size is not None:
            width, height = size
            self.input_size = int(height), int(width)
        self.any_size = not hasattr(head, 'in_featuremap_size')

    def forward(self, images: Tensor) -> list[Tensor]:
        """Crops of persons (B, C, H, W) to heat maps (B, K, H', W'), or SimCC's x and y."""
        return _tensors(self.model.head(self.model.extract_feat(images)))


class DetectorGraph(ModelGraph):
    """Backbone and neck of a detector of mmdet: the maps that its heads read."""

    left_out = 'the heads: proposals, boxes, masks and their suppression'

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to the neck's maps, finest first."""
        return _tensors(self.model.extract_feat(images))


class SegmentorGraph(ModelGraph):
    """A segmentation model of mmseg, an ``EncoderDecoder``: scores of every class.

    Raises:
        UserError: If the model's head gives no map of scores, such as Mask2Former's.
    """

    output_names = ('scores',)

    def __init__(self, model: Any) -> None:
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
        from mmseg.models.utils import Upsample

        head = getattr(model, 'decode_head', None)
        if not isinstance(head, BaseDecodeHead):
            raise _no_graph(model, head, 'gives no map of class scores')
        super().__init__(model)
        for parent in list(self.model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Upsample) and child.scale_factor:
                    # mmseg's turns the size into a Python integer, which ends a graph for any size.
                    plain = nn.Upsample(None, child.scale_factor, child.mode, child.align_corners)
                    setattr(parent, name, plain)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every class, (B, classes, H, W), of images (B, C, H, W)."""
        scores = self.model.decode_head.forward(self.model.extract_feat(images))
        corners = self.model.decode_head.align_corners
        size = images.shape[2:]
        return F.interpolate(scores, size=size, mode='bilinear', align_corners=corners)


GRAPHS: dict[str, type[ModelGraph]] = {
    'mmdet': DetectorGraph,
    'mmpose': PoseGraph,
    'mmpretrain': ClassifierGraph,
    'mmseg': SegmentorGraph,
}


def _no_graph(model: nn.Module, head: nn.Module | None, why: str) -> UserError:
    """Says that a whole model is none of those that become a graph."""
    whose = type(model).__name__ + (f' with {type(head).__name__}' if head is not None else '')
    return UserError(f'{whose} {why}; export its backbone with --backbone')


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a network's output, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for each in outputs for tensor in _tensors(each)]


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
    images = torch.randn(2, channels_of(module), *size)
    try:
        with torch.no_grad():
            return torch.export.export(exportable, (images,), dynamic_shapes=(dims,), strict=False)
    except Exception as error:
        if dynamic and isinstance(error, torch._dynamo.exc.UserError | TypeError):
            raise _cannot(
                module, error, ' for any size', 'export it for one with --static'
            ) from error
        if isinstance(module, ModelGraph):  # whose head and neck are anybody's
            raise _cannot(module, error, '', 'export its backbone with --backbone') from error
        raise


def _cannot(module: nn.Module, error: Exception, how: str, mend: str) -> UserError:
    """Says what the exporter says of a model, in one line."""
    line = next((line for line in str(error).splitlines() if line.strip()), '')
    model = module.model if isinstance(module, ModelGraph) else module
    return UserError(f'{type(model).__name__} cannot be exported{how} ({line}); {mend}')


def to_onnx(program: Any, path: str, output_names: Sequence[str] = ()) -> None:
    """Writes what ``to_program`` returned as an ONNX model of opset 18, with the weights in it.

    Args:
        program: The program.
        path: The file to write.
        output_names: Of its outputs, where there are as many; the exporter names others.

    Raises:
        UserError: If a package is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {", ".join(missing)}; pip install {" ".join(missing)}')
    table: Any = {torch.ops.aten.sort.stable: _stable_sort}
    named = len(output_names) == len(program.graph_signature.user_outputs)
    with _quiet():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=['images'],
            output_names=list(output_names) if named else None,
            custom_translation_table=table,
        )
        assert onnx_program is not None
        onnx_program.save(path)


def differences(
    module: nn.Module, path: str, shapes: Sequence[Sequence[int]], draw: int = 0
) -> dict[tuple[tuple[int, ...], str], float]:
    """Compares a written graph with the module, in exportable form, that it was made of.

    Args:
        module: The module, in evaluation mode.
        path: The graph: ``.pt2``, or an ONNX model, which ONNX Runtime computes.
        shapes: Batch, height and width of images to compare on: noise and a single colour for each.
        draw: Which noise.

    Returns:
        The largest difference of an output's element, by shape and kind of images; NaN if one of
        them is NaN. In an output with elements above 10 it counts as a share: of a tenth of the
        largest.
    """
    compute = load_graph(path)
    found = {}
    for batch, *size in shapes:
        generator = torch.Generator().manual_seed(batch + 1000 * draw)
        noise = torch.randn(batch, channels_of(module), *size, generator=generator)
        for kind, images in (('random', noise), ('flat', torch.full_like(noise, 0.7))):
            with torch.no_grad():
                outs, expected = _tensors(compute(images)), _tensors(module(images))
            largest = [
                (out - each).abs().max() / (each.abs().max() / 10).clamp(min=1)
                for out, each in zip(outs, expected, strict=True)
            ]
            shape = (batch, *size)
            found[shape, kind] = torch.stack(largest).max().item()  # Python's max skips NaN
    return found


def load_graph(path: str) -> Callable[[Tensor], Any]:
    """What computes a written graph: images to its outputs, with as many threads as PyTorch has.

    Args:
        path: ``.pt2``, which PyTorch computes, or an ONNX model, which ONNX Runtime does.
    """
    return torch.export.load(path).module() if path.endswith('.pt2') else _onnx_runtime(path)


def channels_of(module: nn.Module) -> int:
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
