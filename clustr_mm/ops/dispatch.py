"""What every operator asks before it runs: may its kernels, and why not; which precision; by what.

A kernel is optional. Where one cannot run, plain PyTorch does, and a warning says why, once for
each operator and reason. ``CLUSTR_MM_KERNELS`` in the environment is the one switch: ``0`` for no
kernels, or the names of the operators that may use theirs (``dpc_knn,merge,conv_gelu``); without it
all may. Compiled code on a CPU is a kernel too.
"""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable

OPERATORS = ('dpc_knn', 'merge', 'conv_gelu')  # those with kernels

_TRITON = (3, 3)  # the first with tuples of arguments
_CAPABILITY = (8, 0)  # the first with asynchronous copies

_logger = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()
_Function = TypeVar('_Function', bound=Callable[..., Any])


def constant_in_graphs(function: _Function) -> _Function:
    """Lets torch.compile call a function while it traces, and take the result for a constant.

    It is ``torch.compiler.assume_constant_result``, which would import all of torch.compile.
    """
    function.__dict__['_dynamo_marked_constant'] = True
    return function


# ------------------------------------------------------------------------------ may kernels run?


@constant_in_graphs
def why_no_kernels(name: str, device: torch.device) -> str | None:
    """Says why an operator's Triton kernels cannot run on a device.

    Returns:
        The reason and, where there is one, the mend; None if they can.

    Raises:
        ValueError: If ``CLUSTR_MM_KERNELS`` names an operator that is none.
    """
    reason = why_switched_off(name)
    if reason is not None:
        return reason
    if not hasattr(torch.library, 'custom_op'):
        return f'torch {torch.__version__} has no torch.library.custom_op; use torch 2.4 or newer'
    try:
        import triton
    except ImportError as error:
        return f'triton cannot be imported ({error}); install triton {_version(_TRITON)} or newer'
    if _parts(triton.__version__) < _TRITON:
        return f'triton is {triton.__version__}; install {_version(_TRITON)} or newer'
    if os.environ.get('TRITON_INTERPRET') == '1':
        return None
    if device.type != 'cuda':
        return (
            f'x is on {device.type}; the kernels need a GPU, or TRITON_INTERPRET=1 in the '
            'environment from the start, for tests'
        )
    return _why_not_on(device)


def why_switched_off(name: str) -> str | None:
    """Says whether ``CLUSTR_MM_KERNELS`` keeps an operator from its kernels.

    Returns:
        The reason and the mend; None if it does not.

    Raises:
        ValueError: If it names an operator that is none.
    """
    wanted = os.environ.get('CLUSTR_MM_KERNELS')
    if wanted is None:
        return None
    names = [each.strip() for each in wanted.split(',')]
    if names != ['0'] and (unknown := set(names) - set(OPERATORS)):
        raise ValueError(
            f'CLUSTR_MM_KERNELS is {wanted!r}; {min(unknown)!r} is no operator: use 0 for no '
            f'kernels, or some of {",".join(OPERATORS)}'
        )
    return None if name in names else f'CLUSTR_MM_KERNELS is {wanted!r}; add {name}'


@lru_cache  # of a hundred calls an image, each would wait for it
def _why_not_on(device: torch.device) -> str | None:
    """Why no kernel can run on a GPU: looks at it, compiles a tiny one and runs it."""
    if torch.version.hip is not None:
        return f'this is ROCm {torch.version.hip}; the kernels are for NVIDIA GPUs'
    try:
        capability = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    except (AssertionError, RuntimeError) as error:  # a graph for a GPU, traced without one
        return f'there is no GPU here ({str(error).strip().splitlines()[0]})'
    if capability < _CAPABILITY:
        return (
            f'{name} has compute capability {_version(capability)}; the kernels need '
            f'{_version(_CAPABILITY)}'
        )
    try:
        from clustr_mm.ops.probe import probe_kernel

        with torch.cuda.device(device):
            probe_kernel[(1,)](torch.empty(1, device=device))
    except Exception as error:  # no compiler, a cache that cannot be written, an old driver, ...
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f'a first kernel does not run on {name} ({said})'
    return None


@constant_in_graphs
def say_fallback(name: str, reason: str) -> None:
    """Warns, once for each operator and reason, that it runs without its kernels."""
    if (name, reason) not in _said:
        _said.add((name, reason))
        _logger.warning('%s without its kernels, far slower: %s', name, reason)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which x's device is the current one, on which Triton launches."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


@lru_cache
def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split('.')[:2])


def _version(parts: tuple[int, int]) -> str:
    return '.'.join(map(str, parts))


# -------------------------------------------------------------------------------------- precision


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype to which autocast rounds a tensor for matrix products.

    Returns:
        The dtype; None where autocast is off, for float64, which it leaves, and before torch 2.4,
        which does not say it for every device.
    """
    if not hasattr(torch, 'get_autocast_dtype') or x.dtype == torch.float64:
        return None
    device = _autocast_device(x)
    if device is None or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context, for x's device, in which nothing is rounded to half precision."""
    device = _autocast_device(x)
    return nullcontext() if device is None else torch.autocast(device, enabled=False)


def _autocast_device(x: Tensor) -> str | None:
    """The name of x's device for autocast; None where there is no autocast, as in old MPS."""
    name = 'cpu' if x.is_meta else x.device.type  # autocast does not know the meta device
    return name if _has_autocast(name) else None


@constant_in_graphs
def _has_autocast(device: str) -> bool:
    if hasattr(torch.amp, 'is_autocast_available'):
        return torch.amp.is_autocast_available(device)
    return device in ('cpu', 'cuda')


# -------------------------------------------------------------------------------------- operators

# Others may stand for anything: a graph's symbols, a tensor without values, one shared out.
_PLAIN = frozenset({Tensor, nn.Parameter, type(None), int, float, bool, str, list, tuple})


class Operator:
    """An operator of torch.library, ``clustr_mm::...``, for every device and backend.

    Whatever traces, counts or transforms (torch.compile, torch.export, torch.jit.trace, fake
    tensors, FlopCounterMode, torch.func) sees one operator. But the dispatcher, and the gradient
    that torch.library registers in Python, take the host several times as long as a launch itself,
    and a backbone has a hundred of them. So on plain tensors in eager code the implementation is
    called as it is, as a torch.autograd.Function where a gradient is wanted. Not by
    ``torch.library.custom_op``, whose wrapper takes the host twice as long.

    Before torch 2.4 there is no operator, and the implementation is called always.

    Args:
        signature: Name and schema, as in ``'f(Tensor x) -> Tensor'``.
        implementation: Computes it; it neither changes nor returns its arguments.
        fake: Makes outputs of the right shape and dtype.
        backward: Of a context and the outputs' gradients, the inputs' gradients, which can not be
            differentiated again; None where there are none.
        remember: Of a context, the inputs and the output: keeps what ``backward`` needs.

    Attributes:
        registered: Whether torch knows the operator.
    """

    def __init__(
        self,
        signature: str,
        implementation: Callable[..., Any],
        fake: Callable[..., Any],
        backward: Callable[..., Any] | None = None,
        remember: Callable[..., None] | None = None,
    ) -> None:
        self._implementation = implementation
        self._fake = fake
        self._function: Any = None
        if backward is not None and remember is not None:
            self._function = _function(implementation, backward, remember)
        self.registered = hasattr(torch.library, 'custom_op')
        if not self.registered:
            return
        name = signature[: signature.index('(')]
        qualified = f'clustr_mm::{name}'
        torch.library.define(qualified, signature[len(name) :])
        torch.library.impl(qualified, 'default', implementation)
        torch.library.register_fake(qualified, fake)
        if backward is not None:
            torch.library.register_autograd(qualified, backward, setup_context=remember)
        self._operator = getattr(torch.ops.clustr_mm, name)

    def __call__(self, *arguments: Any) -> Any:
        """Runs the operator."""
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        is_meta = any(tensor.is_meta for tensor in tensors)
        if not self.registered and (is_meta or any(isinstance(t, FakeTensor) for t in tensors)):
            return self._fake(*arguments)
        if self.registered and (is_meta or _is_traced() or not {*map(type, arguments)} <= _PLAIN):
            return self._operator(*arguments)
        if (
            self._function is not None
            and torch.is_grad_enabled()
            and any(tensor.requires_grad for tensor in tensors)
        ):
            return self._function.apply(*arguments)
        return self._implementation(*arguments)


def _is_traced() -> bool:
    """Whether somebody must see an operator."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def _function(
    implementation: Callable[..., Any],
    backward: Callable[..., Any],
    remember: Callable[..., None],
) -> type[torch.autograd.Function]:
    """The same as a function of autograd."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = implementation(*arguments)
            remember(ctx, arguments, output)
            return output

    members = {'backward': staticmethod(once_differentiable(backward))}
    return type('Function', (Function,), members)


# torch 2.1 has neither this function nor a trace that runs the code itself.
is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def integer(value: Any, name: str) -> int:
    """A count as an int: numpy has its own, and torch.jit.trace tensors without a dimension.

    Raises:
        ValueError: If it is no integer.
    """
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f'{name} is {value!r}; use an integer') from None


def known(condition: bool) -> bool:
    """Whether a condition on sizes holds; in a graph for any size, whether it holds for all."""
    if not is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
