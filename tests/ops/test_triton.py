"""The Triton kernels: interpreted or on a GPU, and compiled for GPUs that are not here."""

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

from clustr_mm.models import ClusTR
from clustr_mm.ops import dispatch, dpc_knn
from clustr_mm.ops.clustering import triton as clustering
from clustr_mm.ops.clustering.triton import can_run_triton
from clustr_mm.ops.conv_gelu import triton as conv_gelu
from clustr_mm.ops.merging import triton as merging

triton = pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize('checks', ['triton_checks.py', 'conv_gelu_checks.py'])
def test_kernels(checks, interpreted):
    run_checks(Path(__file__).with_name(checks), interpreted)


@both_ways
@pytest.mark.long
@pytest.mark.parametrize('checks', ['triton_checks.py', 'conv_gelu_checks.py'])
def test_kernels_at_length(checks, interpreted):
    run_checks(Path(__file__).with_name(checks), interpreted, 'long')


# --- what the compiler says


# Bytes of shared memory that a program may use, by compute capability.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


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
        assert compiled.metadata.shared <= SHARED_MEMORY[triton.runtime.driver.active.target.arch]


def replace_kernels(monkeypatch, stand_in) -> int:
    """Puts something in every kernel's place; returns how many there are."""
    from clustr_mm.ops.clustering import kernels as of_clustering
    from clustr_mm.ops.conv_gelu import kernels as of_conv_gelu
    from clustr_mm.ops.merging import kernels as of_merging

    kernels = [
        (module, name, kernel)
        for module in (of_clustering, of_merging, of_conv_gelu)
        for name, kernel in vars(module).items()
        if name.endswith('_kernel')
    ]
    for module, name, kernel in kernels:
        monkeypatch.setattr(module, name, stand_in(kernel))
    return len(kernels)


@pytest.fixture
def gpu_to_compile_for(monkeypatch, tmp_path):
    """Of a compute capability: kernels are compiled for it where they would be launched."""
    if os.environ.get('TRITON_INTERPRET') == '1':
        pytest.skip('interpreted, not compiled')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    driver = triton.runtime.driver
    before = vars(driver).copy()  # to reset it asks for a GPU
    assert replace_kernels(monkeypatch, Compiled) == 8
    yield lambda capability: driver.set_active(DriverOfNoGpu(capability))
    vars(driver).update(before)


# The interpreter takes much that the compiler does not.
@pytest.mark.parametrize('capability', [pytest.param(80, marks=pytest.mark.slow), 90])
def test_kernels_compile_for_a_gpu(capability, gpu_to_compile_for):
    gpu_to_compile_for(capability)
    compile_all(64, torch.float32, 'fp16x3')
    compile_all(64, torch.float16, 'fp16')


@pytest.mark.long
@pytest.mark.parametrize('capability', [80, 86, 90, 100, 120])
@pytest.mark.parametrize('channels', [64, 128, 256, 320, 512])
def test_all_kernels_compile_for_all_gpus(capability, channels, gpu_to_compile_for, monkeypatch):
    gpu_to_compile_for(capability)
    limits = SHARED_MEMORY[capability], capability // 10
    monkeypatch.setattr(clustering, '_limits', lambda device: limits)
    clustering._choose_tile.cache_clear()
    compile_all(channels, torch.float32, 'fp16x3')
    for dtype in (torch.float16, torch.bfloat16):
        compile_all(channels, dtype, 'fp16')
    clustering._choose_tile.cache_clear()


def compile_all(channels: int, dtype: torch.dtype, precision: str) -> None:
    n = 4200
    x = torch.zeros(8, n, channels, dtype=dtype)
    labels, logits = torch.zeros(8, n, dtype=torch.int64), torch.zeros(8, n, dtype=dtype)
    tokens = clustering.prepare(x, precision)
    clustering.score(tokens, clustering.density(tokens, k=5).zero_())
    clustering.assign(tokens, torch.zeros(8, 4224, dtype=torch.int64), [65, 260])
    clustering.density(clustering.prepare(x[:, :196], precision), k=33)
    merged = merging.merge_triton(x, labels, 260, logits)
    merging.merge_backward_triton(merged[0], x, labels, logits, *merged)
    weight, bias = torch.zeros(channels, 1, 3, 3), torch.zeros(channels)
    conv_gelu._conv_gelu(x, weight, bias, 60, 70)
    conv_gelu._backward(x, x, weight, bias, 60, 70)


# --- may they run


def test_what_cannot_run_says_why(monkeypatch):
    x = torch.zeros(1, 10, 4)
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    assert can_run_triton(x).startswith('x is on cpu; the kernels need a GPU')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert can_run_triton(x, k=33) is None
    assert can_run_triton(x.half()) is None
    assert 'float64' in can_run_triton(x.double())
    assert 'float64' in merging.can_run_merge(x.double())
    assert 'k is 34' in can_run_triton(x, k=34)
    assert '513 channels' in can_run_triton(torch.zeros(1, 2, 513))
    assert '16777216 tokens' in can_run_triton(torch.zeros(1).expand(1, 2**24, 64))
    monkeypatch.setenv('CLUSTR_MM_KERNELS', 'merge')
    assert can_run_triton(x) == "CLUSTR_MM_KERNELS is 'merge'; add dpc_knn"
    assert merging.can_run_merge(x) is None
    monkeypatch.delenv('CLUSTR_MM_KERNELS')
    monkeypatch.setattr(triton, '__version__', '3.1.0')
    assert can_run_triton(x) == 'triton is 3.1.0; install 3.3 or newer'
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'install triton 3.3' in can_run_triton(x)
    monkeypatch.delattr(torch.library, 'custom_op')
    assert 'use torch 2.4 or newer' in can_run_triton(x)


def test_asking_for_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    with pytest.raises(ValueError, match="backend 'triton' cannot run: x is on cpu; the kernels"):
        dpc_knn(torch.zeros(1, 10, 4), 3, backend='triton')


@pytest.fixture
def a_gpu_of(monkeypatch):
    """Of a compute capability: what torch says where there is such a GPU."""

    why_not_on = dispatch._why_not_on

    def pretend(capability: tuple[int, int]) -> torch.device:
        monkeypatch.setenv('TRITON_INTERPRET', '0')
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'a GPU')
        monkeypatch.setattr(dispatch, '_why_not_on', why_not_on.__wrapped__)
        monkeypatch.setattr(dispatch, '_said', set())
        return torch.device('cuda', 0)

    return pretend


def test_a_gpu_that_cannot_is_named(a_gpu_of, monkeypatch):
    device = a_gpu_of((7, 5))
    assert 'a GPU has compute capability 7.5; the kernels need 8.0' in why_not(device)
    device = a_gpu_of((9, 0))
    # What a GPU without a C compiler or with a read-only cache says; here there is no GPU at all.
    assert 'a first kernel does not run on a GPU (' in why_not(device)
    monkeypatch.setattr(torch.version, 'hip', '6.2')
    assert why_not(device) == 'this is ROCm 6.2; the kernels are for NVIDIA GPUs'


def why_not(device):
    return dispatch.why_no_kernels('merge', device)


def test_a_fallback_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, '_said', set())
    for name in ('merge', 'merge', 'dpc_knn'):
        dispatch.say_fallback(name, 'too old')
    assert [record.getMessage() for record in caplog.records] == [
        'merge without its kernels, far slower: too old',
        'dpc_knn without its kernels, far slower: too old',
    ]


# --- the host


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
def pretended_gpu(a_gpu_of, monkeypatch):
    """Tensors that say they are on a GPU and hold no values: reading one is an error."""
    a_gpu_of((9, 0))
    monkeypatch.setattr(dispatch, '_why_not_on', lambda device: None)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
        yield calls


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU: triton_checks.py asks it')
@pytest.mark.parametrize('window', [None, 8])
def test_a_gpu_takes_the_kernels_and_the_host_never_waits(window, pretended_gpu):
    model = ClusTR(arch='tiny', cluster_window=window)
    weights = {
        name: torch.empty(value.shape, device='cuda') for name, value in model.state_dict().items()
    }
    pretended_gpu.names.clear()
    images = torch.empty(2, 3, 96, 120, device='cuda')
    maps = torch.func.functional_call(model, weights, (images,))
    assert [m.shape[1:] for m in maps] == [(64, 24, 30), (128, 12, 15), (256, 6, 8), (512, 3, 4)]
    names = pretended_gpu.names
    assert names.count('clustr_mm.dpc_knn.default') >= 9  # blocks of cluster attention
    assert names.count('clustr_mm.merge.default') >= 9
    assert names.count('clustr_mm.conv_gelu.default') == 10
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
    for module in (clustering, merging, conv_gelu):
        monkeypatch.setattr(module, 'on_device_of', lambda x: nullcontext())
    monkeypatch.setattr(clustering, '_limits', lambda device: (2**16, 9))
    x = torch.empty(2, 100, 20, device='cuda', dtype=dtype)
    labels = clustering.dpc_knn_triton(x, [6, 25, 100, 6], 5)
    assert labels.shape == (4, 2, 100) and labels.dtype == torch.int64
    logits = x[..., 0]
    merged = merging.merge_triton(x, labels[0], 6, logits)
    assert [t.shape for t in merged] == [(2, 6, 20), (2, 6), (2, 6)]
    grads = merging.merge_backward_triton(merged[0], x, labels[0], logits, *merged)
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, dtype), (logits.shape, dtype)]
    weight, bias = torch.empty(20, 1, 3, 3, device='cuda'), torch.empty(20, device='cuda')
    out = conv_gelu._conv_gelu(x, weight, bias, 10, 10)
    grads = conv_gelu._backward(out, x, weight, bias, 10, 10)
    assert [g.dtype for g in (out, *grads)] == [dtype, dtype, torch.float32]
    assert not pretended_gpu.crossing


@pytest.mark.parametrize('capability', SHARED_MEMORY)
@pytest.mark.parametrize('precision', ['fp16x3', 'fp16'])
@pytest.mark.parametrize('channels', [1, 64, 100, 320, 512])
@pytest.mark.parametrize('n', [1, 196, 66800])
def test_tiles_fit_the_map_the_shared_memory_and_the_registers(
    n, channels, precision, capability, monkeypatch
):
    room, major = SHARED_MEMORY[capability], capability // 10
    clustering._choose_tile.cache_clear()
    monkeypatch.setattr(clustering, '_limits', lambda device: (room, major))
    padded_c = -(-channels // 16) * 16 * (2 if precision == 'fp16x3' else 1)
    multiple = 128 if n == 66800 else 64
    keys = torch.empty(1, -(-n // multiple) * multiple, padded_c, device='meta').half()
    tokens = clustering.PreparedTokens(keys, keys[..., 0], keys[:, 0, 0], n, channels, precision)
    assert padded_c % tokens.block_c == 0 and tokens.block_c in (16, 32, 64)
    for values in (2, 3, 5, clustering._MAX_K):
        tile = clustering.choose_tile(tokens, values)
        assert keys.shape[1] % tile.rows == 0 and tile.rows % tile.columns == 0
        assert tile.columns >= 16
        used = (tile.rows + tile.stages * tile.columns) * padded_c * keys.element_size()
        assert used <= room
        assert tile.rows * tile.columns * values <= 80 * 32 * tile.warps
        assert tile.registers is None or (capability == 90 and tile.warps == 8 and 2 * used < room)
    clustering._choose_tile.cache_clear()


def test_a_tile_that_a_device_refuses_gives_way_to_a_smaller_one(monkeypatch):
    from triton.runtime.errors import OutOfResources

    tried = []

    class Small:
        def __getitem__(self, grid):
            return self.run

        def run(self, *args, BLOCK_M, BLOCK_N, **constants):
            tried.append((BLOCK_M, BLOCK_N))
            if BLOCK_M * BLOCK_N > 32 * 16:
                raise OutOfResources(BLOCK_M * BLOCK_N, 32 * 16, 'shared memory')

    monkeypatch.setattr(clustering, '_too_large', set())
    kernel, keys = Small(), torch.zeros(1, 64, 32).half()
    tokens = clustering.PreparedTokens(keys, keys[..., 0], keys[:, 0, 0], 64, 32, 'fp16')
    tile = clustering.Tile(64, 32, 4, 2, None)
    clustering._launch(kernel, tokens, tile)
    assert tried == [(64, 32), (64, 16), (32, 16)]
    tried.clear()
    clustering._launch(kernel, tokens, tile)
    assert tried == [(32, 16)], 'what was refused is not tried again'
