"""The Triton backend: its kernels interpreted or on a GPU, and its compiler without one."""

import functools
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton_process import both_ways, run_checks

from clustr_mm import ClusTR
from clustr_mm.models import add_norm, attend
from clustr_mm.ops.clustering import dpc_knn
from clustr_mm.ops.clustering import triton as backend
from clustr_mm.ops.conv_gelu import conv_gelu
from clustr_mm.ops.merging import triton as merge_triton

triton = pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)


@both_ways
def test_kernels(interpreted):
    run_checks(Path(__file__).with_name('triton_checks.py'), interpreted)


class DriverOfNoGpu:
    """What Triton asks its driver for when it compiles and does not launch."""

    def __init__(self, capability: int) -> None:
        self.target = triton.backends.compiler.GPUTarget('cuda', capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


class Compiled:
    """Stands for a kernel: compiles what is launched."""

    def __init__(self, kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid):
        return functools.partial(self.compile, grid)

    def compile(self, grid, *args, **constants) -> None:
        compiled = self.kernel.warmup(*args, grid=grid, **constants)
        assert compiled.asm['cubin']
        assert compiled.metadata.shared <= backend._SHARED_MEMORY


def replace_kernels(monkeypatch, stand_in) -> int:
    """Puts something in every kernel's place; returns how many there are."""
    from clustr_mm.models import add_norm_kernels, attend_kernels
    from clustr_mm.ops.clustering import kernels as triton_kernels
    from clustr_mm.ops.clustering import whole_image_kernel
    from clustr_mm.ops.conv_gelu import kernels as conv_gelu_kernels
    from clustr_mm.ops.merging import kernels as merge_kernels

    modules = (
        triton_kernels,
        whole_image_kernel,
        merge_kernels,
        conv_gelu_kernels,
        add_norm_kernels,
        attend_kernels,
    )
    kernels = [
        (module, name, kernel)
        for module in modules
        for name, kernel in vars(module).items()
        if name.endswith('_kernel')
    ]
    for module, name, kernel in kernels:
        monkeypatch.setattr(module, name, stand_in(kernel))
    return len(kernels)


@pytest.mark.skipif(os.environ.get('TRITON_INTERPRET') == '1', reason='interpreted, not compiled')
@pytest.mark.parametrize('capability', [80, 90])
def test_kernels_compile_for_a_gpu(capability, monkeypatch, tmp_path):
    # The interpreter takes much that the compiler does not.
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    assert replace_kernels(monkeypatch, Compiled) == 16
    x = torch.zeros(8, 4200, 64)
    labels, logits = torch.zeros(8, 4200, dtype=torch.int64), torch.zeros(8, 4200)
    layer = torch.zeros(1, 64)
    driver = triton.runtime.driver
    before = vars(driver).copy()  # to reset it asks for a GPU
    driver.set_active(DriverOfNoGpu(capability))
    try:
        tokens = backend.prepare(x, 'fp16x3')
        backend.score(tokens, backend.density(tokens, k=5).zero_())
        backend.assign(tokens, torch.zeros(8, 4224, dtype=torch.int64), [65, 260])
        few = torch.zeros(2, 196, 256)
        backend.cluster_whole_images(few, [49, 196], 5, 'fp16x3')
        backend.cluster_whole_images(few.half(), [49], 5, 'fp16')
        for u in (x, x.half()):
            for scales in (([labels], [260]), ([None], [4200]), ([labels, None], [260, 4200])):
                merged, *saved, _ = merge_triton._merge(u, *scales, logits, None, None)
                merge_triton._merge_backward(merged, u, *scales, logits, None, *saved)
                merge_triton._merge(u, *scales, None, layer, layer[0, :1])
                merge_triton._merge_backward(merged, u, *scales, logits, layer, *saved)
            weight, bias = torch.zeros(64, 1, 3, 3), torch.zeros(64)
            conv_gelu._conv_gelu(u, weight, bias, 60, 70)
            conv_gelu._backward(u, u, weight, bias, 60, 70)
            for scale in (None, torch.zeros(8, 1, 1)):
                for unrounded in (False, True):
                    add_norm._add_norm(x, u, scale, bias, bias, 1e-6, u.dtype, unrounded)
                for grad in (None, x):
                    add_norm._backward(grad, u, x, scale, bias, 1e-6, x.dtype, u.dtype)
        for dtype in (torch.float16, torch.bfloat16):
            q = torch.zeros(2, 100, 64, dtype=dtype)
            kv = torch.zeros(2, 20, 128, dtype=dtype)
            for other in (None, kv):
                attend._attend(q, kv, other, 1)
                attend._backward(q, q, kv, other, 1)
    finally:
        vars(driver).update(before)


def test_what_cannot_run_says_why(monkeypatch):
    x = torch.zeros(1, 10, 4)
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    assert backend.can_run_triton(x).startswith('x is on cpu; the kernels need a GPU')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert backend.can_run_triton(x, k=33) is None
    assert backend.can_run_triton(x.half()) is None
    assert 'float64' in backend.can_run_triton(x.double())
    assert 'k is 34' in backend.can_run_triton(x, k=34)
    assert '513 channels' in backend.can_run_triton(torch.zeros(1, 2, 513))
    assert '16777216 tokens' in backend.can_run_triton(torch.zeros(1).expand(1, 2**24, 64))
    monkeypatch.setattr(triton, '__version__', '3.1.0')
    assert backend.can_run_triton(x) == 'triton is 3.1.0; install 3.3 or newer'
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'install triton 3.3' in backend.can_run_triton(x)
    monkeypatch.delattr(torch.library, 'custom_op')
    assert 'use torch 2.4 or newer' in backend.can_run_triton(x)


def test_asking_for_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    with pytest.raises(ValueError, match="backend 'triton' cannot run: x is on cpu; the kernels"):
        dpc_knn(torch.zeros(1, 10, 4), 3, backend='triton')


class Calls(TorchDispatchMode):
    """Notes the operators that run, and those that move values between host and device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.crossing: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(str(function))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors}) > 1:
            self.crossing.append(str(function))
        return result


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Tensors that say they are on a GPU and hold no values: reading one is an error."""
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (9, 0))
    monkeypatch.setattr(backend, '_too_old', backend._too_old.__wrapped__)  # nothing remembered
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
        yield calls


@pytest.fixture(params=[None, 8])
def model(request):
    return ClusTR(arch='tiny', cluster_window=request.param)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU: triton_checks.py asks it')
def test_a_gpu_clusters_and_merges_with_the_kernels_and_the_host_never_waits(model, pretended_gpu):
    weights = {
        name: torch.empty(value.shape, device='cuda') for name, value in model.state_dict().items()
    }
    pretended_gpu.names.clear()
    images = torch.empty(2, 3, 96, 120, device='cuda')
    maps = torch.func.functional_call(model, weights, (images,))
    assert [m.shape[1:] for m in maps] == [(64, 24, 30), (128, 12, 15), (256, 6, 8), (512, 3, 4)]
    names = pretended_gpu.names
    clusterings = names.count('clustr_mm.dpc_knn.default')
    assert clusterings >= 9  # tiny has so many blocks of cluster attention
    assert names.count('clustr_mm.merge_tokens.default') >= 9
    for kernel, times in (('conv_gelu', 1), ('add_norm', 2)):
        assert names.count(f'clustr_mm.{kernel}.default') == times * 10  # blocks
    assert not pretended_gpu.crossing
    assert not {'aten.cdist.default', 'aten.topk.default', 'aten.scatter_reduce.two'} & {*names}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_between_the_kernels_the_host_never_waits(pretended_gpu, dtype, monkeypatch):
    class Launched:
        def __init__(self, kernel) -> None:
            pass

        def __getitem__(self, grid):
            return lambda *args, **constants: None

    replace_kernels(monkeypatch, Launched)
    for module in (backend, merge_triton, conv_gelu, add_norm, attend):
        monkeypatch.setattr(module, 'on_device_of', lambda x: nullcontext())
    monkeypatch.setattr(backend, '_limits', lambda device: (2**16, 128))
    x = torch.empty(2, 100, 20, device='cuda', dtype=dtype)
    for n in (300, 100):
        tokens = torch.empty(2, n, 20, device='cuda', dtype=dtype)
        labels = backend._dpc_knn(tokens, [6, 25, n, 6], 5, 'fp16x3')
        assert labels.shape == (4, 2, n) and labels.dtype == torch.int64
    scales = [labels[0], None], [6, 100]
    merged, *saved, _ = merge_triton._merge(x, *scales, x[..., 0], None, None)
    assert merged.shape == (2 * 106, 20) and merged.dtype == dtype
    grads = merge_triton._merge_backward(merged, x, *scales, x[..., 0], None, *saved)
    assert [g.dtype for g in grads] == [dtype] * 2
    layer = torch.empty(1, 20, device='cuda'), torch.empty(1, device='cuda')
    *_, logits = merge_triton._merge(x, *scales, None, *layer)
    grads = merge_triton._merge_backward(merged, x, *scales, logits, layer[0], *saved)
    assert [g.dtype for g in grads] == [dtype, torch.float32]
    assert grads[1].shape == (21,)
    weight, bias = torch.empty(20, 1, 3, 3, device='cuda'), torch.empty(20, device='cuda')
    out = conv_gelu._conv_gelu(x, weight, bias, 10, 10)
    grads = conv_gelu._backward(out, x, weight, bias, 10, 10)
    assert [g.dtype for g in (out, *grads)] == [dtype, dtype, torch.float32]
    scale = torch.empty(2, 1, 1, device='cuda')
    *out, unrounded = add_norm._add_norm(x, x, scale, bias, bias, 1e-6, torch.float16, True)
    assert unrounded.shape == x.shape and unrounded.dtype == dtype
    grads = add_norm._backward(*out, x, scale, bias, 1e-6, torch.float32, dtype)
    assert [t.dtype for t in (*out, *grads[:2])] == [dtype, torch.float16, torch.float32, dtype]
    kvs = (
        torch.empty(2, 6, 40, device='cuda', dtype=dtype),
        torch.empty(2, 25, 40, device='cuda', dtype=dtype),
    )
    out = attend._attend(x, *kvs, 2)
    grads = attend._backward(out, x, *kvs, 2)
    assert [t.shape for t in (out, *grads)] == [x.shape, x.shape, *(kv.shape for kv in kvs)]
    assert not pretended_gpu.crossing


@pytest.mark.parametrize('precision', ['fp16x3', 'fp16', 'tf32', 'ieee'])
@pytest.mark.parametrize('channels', [1, 64, 100, 320, 512])
@pytest.mark.parametrize('n', [1, 196, 66800])
def test_tiles_fit_the_map_the_shared_memory_and_the_registers(n, channels, precision):
    half = precision in ('fp16', 'fp16x3')
    padded_c = -(-channels // 16) * 16 * (2 if precision == 'fp16x3' else 1)
    multiple = 128 if n == 66800 else 64
    keys = torch.empty(1, -(-n // multiple) * multiple, padded_c, device='meta')
    keys = keys.half() if half else keys
    tokens = backend.PreparedTokens(keys, keys[..., 0], keys[:, 0, 0], n, channels, precision)
    assert padded_c % tokens.block_c == 0 and tokens.block_c in (16, 32, 64)
    for values in (2, 3, 5, backend._MAX_K):
        tile = backend.choose_tile(tokens, values)
        assert keys.shape[1] % tile.rows == 0 and tile.rows % tile.columns == 0
        assert tile.columns >= 16
        width = padded_c * keys.element_size()
        assert (tile.rows + tile.stages * tile.columns) * width <= 96 * 1024
        assert tile.rows * tile.columns * values <= 80 * 32 * tile.warps
