"""Operators of torch.library that eager code calls without the dispatcher.

Whatever traces or transforms (torch.compile, torch.export, fake tensors, torch.func) must see a
kernel as one operator. But the dispatcher, and the gradient that torch.library registers in Python,
take the host several times as long as the launch itself, and a backbone has a hundred of them. So
on plain tensors in eager code the implementation is called as it is, as a torch.autograd.Function
where a gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Others may stand for anything: a graph's symbols, a tensor without values, one shared out.
_PLAIN = frozenset(
    {Tensor, nn.Parameter, type(None), int, float, bool, str, torch.dtype, list, tuple}
)


class Operator:
    """An operator of torch.library, ``clustr_mm::...``, for every device.

    Not by ``torch.library.custom_op``, whose wrapper takes the host twice as long. Before torch 2.4
    there is no operator, and nothing to call.

    Args:
        signature: Name and schema, as in ``'f(Tensor x) -> Tensor'``.
        implementation: Computes it; it neither changes nor returns its arguments.
        fake: Makes outputs of the right shape and dtype.
        backward: Of a context and the outputs' gradients, the inputs' gradients, which can not be
            differentiated again; None where there are none.
        remember: Of a context, the inputs and the output: keeps what ``backward`` needs.
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
        self._function: Any = None
        if backward is not None and remember is not None:
            self._function = _function(implementation, backward, remember)
        if not hasattr(torch.library, 'custom_op'):
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
        if _is_traced() or not {*map(type, arguments)} <= _PLAIN or any(t.is_meta for t in tensors):
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

    def backward_of_arguments(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        found = backward(ctx, *grads)
        return tuple(None if isinstance(each, list) else each for each in found)  # of lists

    members = {'backward': staticmethod(once_differentiable(backward_of_arguments))}
    return type('Function', (Function,), members)
