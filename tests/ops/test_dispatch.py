"""What operators ask before they run; and that whatever traces sees one operator."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from clustr_mm.ops import dispatch, dpc_knn
from clustr_mm.ops.dispatch import Operator, integer

if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)

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


# --- the switch, and where nothing can be written


def test_the_switch_names_operators_or_0(monkeypatch):
    monkeypatch.delenv('CLUSTR_MM_KERNELS', raising=False)
    assert dispatch.why_switched_off('merge') is None
    monkeypatch.setenv('CLUSTR_MM_KERNELS', '0')
    assert dispatch.why_switched_off('merge') == "CLUSTR_MM_KERNELS is '0'; add merge"
    monkeypatch.setenv('CLUSTR_MM_KERNELS', 'dpc_knn, merge')
    assert dispatch.why_switched_off('merge') is None
    assert dispatch.why_switched_off('conv_gelu') is not None
    monkeypatch.setenv('CLUSTR_MM_KERNELS', 'merge,atention')
    with pytest.raises(ValueError, match="'atention' is no operator: use 0 for no kernels, or"):
        dispatch.why_switched_off('merge')


def test_switched_off_it_runs_in_plain_pytorch_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv('CLUSTR_MM_KERNELS', '0')
    monkeypatch.setattr(dispatch, '_said', set())
    x = torch.randn(1, 50, 8)
    for _ in range(2):
        assert torch.equal(dpc_knn(x, 9), dpc_knn(x, 9, backend='tiled'))
    assert [r.getMessage() for r in caplog.records] == [
        "dpc_knn without its kernels, far slower: CLUSTR_MM_KERNELS is '0'; add dpc_knn"
    ]


def test_is_imported_and_runs_where_nothing_can_be_written():
    code = (
        'import sys, tempfile\n'
        "sys.modules['mmengine'] = sys.modules['dill'] = None\n"  # they write
        'tempfile._candidate_tempdir_list = list\n'
        'import torch, clustr_mm\n'
        "assert 'torch._dynamo' not in sys.modules\n"
        'print(clustr_mm.dpc_knn(torch.eye(9)[None], 3).shape)\n'
        "clustr_mm.ClusTR(arch='tiny')(torch.zeros(1, 3, 32, 32))\n"
    )
    nowhere = dict.fromkeys(('HOME', 'XDG_CACHE_HOME', 'TMPDIR'), '/proc/nowhere')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, 'torch.Size([1, 9])\n'), done.stderr
    (line,) = done.stderr.splitlines()
    assert 'compiled code cannot be kept in /proc/nowhere' in line


def test_a_device_whose_autocast_torch_does_not_know_has_none(monkeypatch):
    # As torch below 2.5 and MPS.
    monkeypatch.delattr(torch.amp, 'is_autocast_available')
    on_mps = SimpleNamespace(is_meta=False, device=torch.device('mps'), dtype=torch.float32)
    assert dispatch.autocast_dtype(on_mps) is None
    with dispatch.without_autocast(on_mps):
        pass


def test_integers_of_all_kinds_and_no_others():
    numpy = pytest.importorskip('numpy')
    for value in (3, numpy.int64(3), torch.tensor(3)):
        assert type(integer(value, 'k')) is int and integer(value, 'k') == 3
    for value in (3.0, '3', None, [3]):
        with pytest.raises(ValueError, match='k is .*; use an integer'):
            integer(value, 'k')
