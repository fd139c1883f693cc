"""What a step of a backbone must compute and move on a GPU, counted where there is none.

Eager PyTorch runs operator after operator, and each reads its inputs from the device's memory and
writes its outputs there. No operator is quicker than its matrix products at the device's rate, nor
than its bytes at the device's bandwidth; the sum of these floors is the step's. A real step takes
longer, by how well each kernel is made and by what the host needs to launch it, but what two models
must do compares without a GPU, and shows where one of them moves too much.

The step runs on tensors without values (torch's fake mode) that pretend to be on a GPU, so that
the code is the one that runs there: our kernels' operators, half precision by autocast as on CUDA,
flash attention. What an operator of ours does inside is counted by its kernels' own formulas.

Where the count errs it favours others: autocast on CUDA takes softmax, with which mmdet's PVTv2
attends, in float32, here it is half precision; and cuDNN's depthwise convolutions, of which PVTv2
has one in every block, are far from their floors.
"""

from __future__ import annotations

import os
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from clustr_mm.analysis.kernels import Ceilings, Work, clustering_work

# Measured on an NVIDIA H200: an 8192-cubed bfloat16 product and a copy, read and written bytes.
H200 = Ceilings(operations=788e12, bytes=4.3e12)
# The merge multiplies tiles of 64 tokens by the blocks of 32 clusters that they meet: 2 to 19, on
# photographs of 224 x 224 to 800 x 1344, untrained.
_MET = 20 * 32
# Operators that make a tensor and leave its memory as it is.
_ALLOCATE = ('aten.empty', 'aten.new_empty', 'aten.detach', 'prim.')


@dataclass
class Share:
    """What all calls of one operator do.

    Attributes:
        calls: How many.
        operations: Of their matrix products; a multiply-add is two.
        bytes: That they read and write.
        seconds: The sum of their floors.
    """

    calls: int = 0
    operations: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Share) -> Share:
        return Share(
            self.calls + other.calls,
            self.operations + other.operations,
            self.bytes + other.bytes,
            self.seconds + other.seconds,
        )


@dataclass
class Step:
    """What a step does.

    Attributes:
        shares: By operator.
        peak_bytes: Most memory in use, the model's and the optimizer's included.
    """

    shares: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    peak_bytes: int = 0

    @property
    def whole(self) -> Share:
        """The sum over all operators."""
        return sum(self.shares.values(), Share())


def count_step(
    model: nn.Module,
    shape: tuple[int, int, int],
    train: bool,
    ceilings: Ceilings = H200,
) -> Step:
    """Counts a step of a backbone in half precision.

    Args:
        model: The backbone. It loses its values, so it is of no further use.
        shape: Of the batch: images, height and width.
        train: Forward under autocast, backward and AdamW, as ``speed.backbone_step`` does; else a
            forward pass, all of it in float16.
        ceilings: What the device does at most.

    Returns:
        The counts.
    """
    model.train(train)
    if not train:
        model.half()
    with FakeTensorMode(), _pretended_gpu(), _Traffic(ceilings) as traffic:
        _forget_values(model)
        images = torch.empty(shape[0], 3, *shape[1:], dtype=None if train else torch.half)
        traffic.restart()
        if not train:
            with torch.no_grad():
                model(images)
            return traffic.step
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, foreach=True)
        for _ in range(2):  # the first makes the optimizer's state
            traffic.restart()
            with _cuda_autocast():
                maps = model(images)
            sum(m.float().square().mean() for m in maps).backward()
            optimizer.step()
            optimizer.zero_grad()
            del maps
        return traffic.step


def _forget_values(model: nn.Module) -> None:
    """Puts fake tensors in the place of parameters and buffers."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def _pretended_gpu() -> Iterator[None]:
    """Fake tensors say they are on a GPU, where attention is flash attention."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        if attn_mask is not None:
            raise ValueError('flash attention takes no mask; count without one')
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    with (
        patch.object(FakeTensor, 'is_cuda', True),
        patch.dict(os.environ, TRITON_INTERPRET='1'),  # so that the kernels need no device
        patch.object(F, 'scaled_dot_product_attention', attention),
    ):
        yield


@contextmanager
def _cuda_autocast() -> Iterator[None]:
    """A CPU's autocast, with the norms in float32 as on CUDA."""
    norm = F.layer_norm

    def in_float32(x: Tensor, *arguments: Any) -> Tensor:
        return norm(x.float(), *arguments)

    with ExitStack() as stack:
        stack.enter_context(torch.autocast('cpu', torch.float16))
        stack.enter_context(patch.object(F, 'layer_norm', in_float32))
        yield


class _Traffic(TorchDispatchMode):
    """Counts every operator that runs, and the memory that lives."""

    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()
        self.ceilings = ceilings
        self.step = Step()
        self.living: dict[int, int] = {}  # bytes by storage

    def restart(self) -> None:
        self.step = Step()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        outputs = _tensors(result)
        for tensor in outputs:
            self._remember(tensor)
        name = str(function)
        if function.is_view or name.startswith(_ALLOCATE):
            return result
        inputs = _tensors((args, kwargs))
        given = {id(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if id(tensor) not in given]
        if not function._schema.is_mutable and made and _storages(made) <= _storages(inputs):
            return result  # reshaped in place, or converted to the dtype that it has
        work, inside = _work(function, args, kwargs, result, _bytes([*inputs, *made]))
        self.step.peak_bytes = max(self.step.peak_bytes, sum(self.living.values()) + inside)
        self.step.shares[name.removesuffix('.default')] += Share(
            1, work.operations, work.bytes, work.floor(self.ceilings)
        )
        return result

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.living:
            self.living[key] = storage.nbytes()
            weakref.finalize(storage, self.living.pop, key, None)


def _tensors(tree: Any) -> list[Tensor]:
    found = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return list({id(tensor): tensor for tensor in found}.values())


def _storages(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def _bytes(tensors: list[Tensor]) -> int:
    """What reading or writing the tensors once moves; an expanded one is as large as its memory."""
    return sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        for tensor in tensors
    )


def _work(function: Any, args: Any, kwargs: Any, result: Any, moved: int) -> tuple[Work, int]:
    """What a call must do, and the bytes that it needs for itself beside its inputs and outputs."""
    name = function.overloadpacket.__name__
    if function.namespace == 'clustr_mm':
        if name == 'conv_gelu_backward':  # the gradient at v is written and read, and u read again
            own = _bytes([args[1]])
            parts = 4 * 10 * args[1].shape[2] * args[1].shape[0] * -(-args[1].shape[1] // 256)
            return Work(0, moved + 3 * own + 2 * parts), own + parts
        if name in ('attend', 'attend_backward'):
            q, *kvs = (t for t in args[name == 'attend_backward' :] if isinstance(t, Tensor))
            keys = sum(-(-kv.shape[1] // 64) * 64 for kv in kvs)  # in tiles
            if name == 'attend':
                return Work(4 * q.numel() * keys, moved), 0
            # Queries and gradients are read by both kernels; two facts a row, head and scale are
            # written and read.
            facts = 8 * len(kvs) * q.shape[0] * q.shape[1] * args[-1]
            return Work(18 * q.numel() * keys, moved + 2 * _bytes([q]) + 2 * facts), facts
        if name == 'merge_tokens':
            x, assignments, counts, _, weight, _ = args
            # The layer reads the tokens, and so does every scale; a product is three of TF32, each
            # at half the rate of float16.
            clusters = sum(
                min(m, _MET) for a, m in zip(assignments, counts, strict=True) if a is not None
            )
            reads = len(counts) - (weight is None)
            return Work(6 * 2 * x.numel() * clusters, moved + reads * _bytes([x])), 0
        if name == 'merge_tokens_backward' and args[5] is not None:
            parts = 4 * (args[1].shape[2] + 1) * args[1].shape[0] * -(-args[1].shape[1] // 32)
            return Work(0, moved + 2 * parts), parts
        if name == 'add_norm_backward':
            parts = _bytes([args[2]]) * args[2].shape[2] // 2**14
            return Work(0, moved + 2 * parts), parts
        if name == 'dpc_knn':
            x = args[0]
            counts = sorted(count for count in set(args[1]) if count < x.shape[1])
            return clustering_work(tuple(x.shape), x.element_size(), counts, args[3])
        return Work(0, moved), 0
    formula = flop_registry.get(function.overloadpacket)
    operations = 0 if formula is None else formula(*args, **kwargs, out_val=result)
    if name in ('convolution', 'convolution_backward'):
        backward = name == 'convolution_backward'
        weight, groups = args[2 if backward else 1], args[9 if backward else 8]
        if groups == weight.shape[0] > 1:  # the registry takes each output for one of all inputs
            taps = weight.shape[2] * weight.shape[3]
            operations = 2 * taps * args[0].numel() * (2 if backward else 1)
    return Work(operations, moved), 0
