"""What every library asks of a backbone, of all variants: no fact of ClusTR in particular."""

import copy
import pickle
import warnings
from itertools import combinations

import pytest
import torch
from small import NARROW
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clustr_mm.models import ARCHS, ClusterAttention, ClusTR

VARIANTS = [*ARCHS, NARROW]
WINDOWED = dict(cluster_window=8, fine_scope='window')


def images(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def narrow(**options) -> ClusTR:
    torch.manual_seed(0)
    return ClusTR(arch=NARROW, **options)


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('arch', VARIANTS)
def test_the_maps_are_what_feature_info_says(arch):
    net = ClusTR(arch=arch).eval()
    with torch.no_grad():
        maps = net(images(1, 3, 64, 96))
    for info, m in zip(net.feature_info, maps, strict=True):
        stride = info['reduction']
        assert m.shape == (1, info['num_chs'], 64 // stride, 96 // stride)
        assert m.isfinite().all() and m.is_contiguous()
        assert net.get_submodule(info['module']) is net.stages[info['index']]
    assert tuple(info['num_chs'] for info in net.feature_info) == net.channels


@pytest.mark.parametrize('arch', VARIANTS)
def test_every_parameter_gets_a_gradient(arch):
    # float64: the bias of the token weights moves the output by no more than its eps of 1e-6.
    net = ClusTR(arch=arch, drop_path_rate=0).double()
    x = images(2, 3, 64, 96, dtype=torch.float64)
    sum(m.square().mean() for m in net(x)).backward()
    assert [
        n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []


@pytest.mark.parametrize(
    'out_indices', [which for n in range(1, 5) for which in combinations(range(4), n)]
)
def test_any_stages_can_be_asked_for(out_indices):
    every, net = narrow().eval(), narrow(out_indices=out_indices).eval()
    x = images(1, 3, 33, 40)
    assert_equal(net(x), [every(x)[i] for i in out_indices])
    from_the_end = narrow(out_indices=[i - 4 for i in out_indices]).eval()
    assert from_the_end.out_indices == out_indices
    sum(m.sum() for m in net(x)).backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained), 'what never runs is not trained'


def test_one_stage_by_its_number():
    assert narrow(out_indices=3).out_indices == narrow(out_indices=-1).out_indices == (3,)


@pytest.mark.parametrize(
    'size', [(1, 1), (1, 40), (2, 3), (5, 5), (31, 32), (33, 33), (64, 64), (97, 131), (8, 300)]
)
def test_any_size_of_image(size):
    net = narrow()
    maps = net(images(2, 3, *size))
    sum(m.mean() for m in maps).backward()
    for info, m in zip(net.feature_info, maps, strict=True):
        sides = tuple(-(-side // info['reduction']) for side in size)
        assert m.shape == (2, info['num_chs'], *sides) and m.isfinite().all()


def modules_called(net: nn.Module) -> set[str]:
    """The submodules whose hooks fire in what follows."""
    called = set()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *args, name=name: called.add(name))
    return called


def those_with_a_forward(net: nn.Module) -> set[str]:
    return {name for name, m in net.named_modules() if not isinstance(m, nn.ModuleList)}


@pytest.mark.parametrize('options', [dict(), WINDOWED, dict(with_cp=True), dict(recluster_every=0)])
def test_hooks_of_every_submodule_fire(options):
    net = narrow(**options)
    called = modules_called(net)
    net(images(2, 3, 64, 64))
    assert called == those_with_a_forward(net)


class LowRank(nn.Module):
    """An adapter as peft's: beside a layer, in its place."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.a, self.b = nn.Linear(channels, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x) + self.b(self.a(x))


@pytest.mark.parametrize('part', ['attn.token_weight', 'norm1', 'norm2', 'mlp.dwconv'])
@pytest.mark.parametrize('amp', [False, True])
def test_an_adapter_in_a_layers_place_is_used_and_trained(part, amp):
    net = narrow(drop_path_rate=0)
    x = images(2, 3, 64, 64)
    before = net.eval()(x)
    block = net.stages[1].blocks[0]
    where, name = block.get_submodule(part.rpartition('.')[0]), part.rpartition('.')[2]
    layer = getattr(where, name)
    if part == 'mlp.dwconv':
        adapter = nn.Sequential(layer, nn.Conv2d(64, 64, 1))
    else:
        adapter = LowRank(layer, 32)
    setattr(where, name, adapter)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        after = net(x)
        sum(m.square().mean() for m in after).backward()
    assert not torch.equal(before[3], after[3])
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


def test_a_copy_and_a_pickle_are_the_same():
    net, x = narrow(**WINDOWED).eval(), images(1, 3, 64, 64)
    net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_equal(other(x), net(x))
        assert repr(other) == repr(net)


def test_is_made_without_memory_and_drawn_later():
    with torch.device('meta'):
        net = ClusTR(arch=NARROW)
        assert [m.shape[1] for m in net(torch.empty(1, 3, 64, 64))] == [16, 32, 48, 64]
    assert all(p.is_meta for p in net.parameters())
    net.to_empty(device='cpu')
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(torch.nan)
    other = narrow()
    for each in (net, other):
        torch.manual_seed(1)
        each.reset_parameters()
    assert all(p.isfinite().all() for p in net.parameters())
    assert_equal(list(net.parameters()), list(other.parameters()))
    with FakeTensorMode():
        assert ClusTR(arch=NARROW)(torch.empty(1, 3, 64, 64))[0].shape == (1, 16, 16, 16)


@pytest.mark.parametrize('options', [dict(), WINDOWED])
def test_a_trace_is_right_on_other_images(options):
    net = narrow(**options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(net, images(2, 3, 96, 80), check_trace=False)
        attention = ClusterAttention(32, 2, reduction=2)
        traced_attention = torch.jit.trace(attention, images(2, 30, 32), check_trace=False)
    for seed in (1, 2):
        x = images(2, 3, 96, 80, seed=seed)
        assert_equal(traced(x), net(x))
        tokens = images(2, 30, 32, seed=seed)
        assert torch.equal(traced_attention(tokens), attention(tokens))
    sum(m.mean() for m in traced(x)).backward()
    assert all(p.grad is not None for p in net.parameters())


needs_operators = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='operators need torch 2.4'
)


@needs_operators
def test_compiles_as_one_graph_and_once_more_for_other_sizes():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    net, counter = narrow().eval(), CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in ((64, 64), (96, 96), (64, 128), (70, 90), (97, 131), (33, 160), (128, 96)):
            x = images(2, 3, *size)
            # A graph for any size adds up in another order where every token is a cluster.
            for ours, plain in zip(compiled(x), net(x), strict=True):
                torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2


@needs_operators
@pytest.mark.parametrize('options', [dict(), WINDOWED])
def test_exports(options):
    net = narrow(**options).eval()
    program = torch.export.export(net, (images(2, 3, 64, 96),), strict=False)
    x = images(2, 3, 64, 96, seed=1)
    assert_equal(program.module()(x), net(x))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@needs_operators
@pytest.mark.parametrize('kernels', [True, False])
def test_for_a_gpu_it_is_one_graph_too_and_hooks_fire(kernels, monkeypatch):
    from clustr_mm.ops import dispatch

    reason = None if kernels else 'pretended'
    monkeypatch.setattr(dispatch, '_why_not_on', lambda device: reason)
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device('cuda'):
            net, x = ClusTR(arch=NARROW), torch.empty(2, 3, 64, 64)
        compiled = torch.compile(net, backend='eager', fullgraph=True)
        assert all(m.is_cuda for m in compiled(x))
        program = torch.export.export(net, (x,), strict=False)
        assert ('clustr_mm.conv_gelu' in str(program.graph)) == kernels
        called = modules_called(net)
        net(x)
    assert called == those_with_a_forward(net)


def test_layers_rise_from_the_image():
    net = narrow()
    names = [name for name, _ in net.named_parameters()]
    layers = {name: net.get_layer_depth(f'net.{name}', 'net.') for name in names}
    assert {total for _, total in layers.values()} == {9}, '7 blocks, the image side, the rest'
    assert net.get_layer_depth('head.weight', 'net.') == (8, 9)
    expected = {
        'stages.0.patch_embed.proj.weight': 0,
        'stages.0.blocks.0.attn.q.weight': 1,
        'stages.0.norm.bias': 1,
        'stages.1.patch_embed.norm.weight': 2,
        'stages.1.blocks.1.mlp.fc1.bias': 3,
        'stages.3.norm.weight': 7,
    }
    assert {name: layers[name][0] for name in expected} == expected
