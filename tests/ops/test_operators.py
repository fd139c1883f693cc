"""Operators: the implementation itself in eager code, one operator for whatever traces."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)

from clustr_mm.ops.dispatch import Operator

CALLS = []


def _scale(x, factor):
    CALLS.append(type(x))
    return x.detach() * factor


def _remember(ctx, inputs, output):
    ctx.factor = inputs[1]


SCALE_BACKWARD = Operator(
    'test_scale_backward(Tensor x, float factor) -> Tensor',
    _scale,
    lambda x, factor: torch.empty_like(x),
)
SCALE = Operator(
    'test_scale(Tensor x, float factor) -> Tensor',
    _scale,
    lambda x, factor: torch.empty_like(x),
    lambda ctx, grad: (SCALE_BACKWARD(grad, ctx.factor), None),
    _remember,
)


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_eager_code_calls_the_implementation(monkeypatch):
    monkeypatch.setattr(SCALE, '_operator', None)
    x = torch.ones(3)
    assert torch.equal(SCALE(x, 2.0), 2 * x)
    x.requires_grad_()
    with torch.no_grad():
        assert not SCALE(x, 2.0).requires_grad
    SCALE(x, 3.0).sum().backward()
    assert x.grad.tolist() == [3, 3, 3]
    assert SCALE(torch.nn.Parameter(x), 2.0).requires_grad


def test_eager_gradients_are_the_operators():
    x = torch.randn(4, requires_grad=True)
    for function in (SCALE, torch.ops.clustr_mm.test_scale):
        (grad,) = torch.autograd.grad(function(x, 2.5).square().sum(), x)
        torch.testing.assert_close(grad, 2 * 2.5**2 * x.detach())


def test_a_second_derivative_is_an_error_and_not_0():
    x = torch.ones(3, requires_grad=True)
    (grad,) = torch.autograd.grad(SCALE(x, 2.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        grad.sum().backward()


def test_a_mode_sees_one_operator(calls):
    x = torch.ones(3, requires_grad=True)
    with Names() as seen:
        SCALE(x, 2.0).sum().backward()
    assert 'clustr_mm.test_scale.default' in seen.names
    assert 'clustr_mm.test_scale_backward.default' in seen.names
    calls.clear()
    with FakeTensorMode() as mode:
        out = SCALE(torch.empty(5), 2.0)
    assert out.fake_mode is mode and not calls, 'nothing is computed'
    assert SCALE(out, 2.0).fake_mode is mode and not calls, 'nor outside of the mode'
    assert SCALE(torch.empty(5, device='meta'), 2.0).is_meta


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compile_sees_one_operator(backend):
    x = torch.randn(3, requires_grad=True)
    compiled = torch.compile(lambda x: SCALE(x.sin(), 2.0), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), 2 * x.sin())
    (grad,) = torch.autograd.grad(compiled(x).sum(), x)
    torch.testing.assert_close(grad, 2 * x.detach().cos())


def test_graphs_have_one_operator():
    graph = make_fx(lambda x: SCALE(x, 2.0))(torch.ones(3)).graph
    assert torch.ops.clustr_mm.test_scale.default in {node.target for node in graph.nodes}
    program = torch.export.export(Scaled(), (torch.ones(3),), strict=False)
    targets = {node.target for node in program.graph.nodes}
    assert torch.ops.clustr_mm.test_scale.default in targets
    traced = torch.jit.trace(Scaled(), torch.ones(3), check_trace=False)
    assert 'clustr_mm::test_scale' in str(traced.inlined_graph)


class Scaled(torch.nn.Module):
    def forward(self, x):
        return SCALE(x, 2.0)


def test_vmap_computes_every_image():
    x = torch.arange(6.0).view(3, 2)
    assert torch.equal(torch.func.vmap(lambda row: SCALE(row, 2.0))(x), 2 * x)
