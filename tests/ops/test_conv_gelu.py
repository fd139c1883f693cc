"""Who computes GELU(u + DWConv(u)): the kernel in a plain convolution's place, else the module."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from clustr_mm.ops.conv_gelu import can_run_conv_gelu, conv_gelu

# The module, whose name is its function's.
of_maps = importlib.import_module('clustr_mm.ops.conv_gelu.conv_gelu')


def convolution(channels: int = 4, **changes) -> nn.Conv2d:
    facts = dict(kernel_size=3, padding=1, groups=channels)
    return nn.Conv2d(channels, channels, **{**facts, **changes})


def test_is_the_formula():
    u, dwconv = torch.randn(2, 15, 4), convolution()
    map_ = u.transpose(1, 2).reshape(2, 4, 3, 5)
    expected = nn.functional.gelu(map_ + dwconv(map_)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(conv_gelu(u, (3, 5), dwconv), expected)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_one_convolution_and_its_gradients_are_the_formulas(batch, dtype):
    u, dwconv = torch.randn(batch, 6 * 5, 4, dtype=dtype), convolution().to(dtype)
    called = convolution().to(dtype)
    called.load_state_dict(dwconv.state_dict())
    calls = []
    called.register_forward_hook(lambda *_: calls.append(1))  # so it is called
    results = []
    for module in (dwconv, called):
        leaf = u.clone().requires_grad_()
        out = conv_gelu(leaf, (6, 5), module)
        assert out.is_contiguous() and out.shape == u.shape
        out.square().sum().backward()
        results.append([out, leaf.grad, module.weight.grad, module.bias.grad])
    assert calls == [1]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ('dtype', 'autocast', 'one'),
    [
        (torch.float32, False, True),
        (torch.float64, False, True),
        (torch.float32, True, False),  # 1 + w in bfloat16 would leave two decimals of w
        (torch.bfloat16, False, False),
    ],
)
def test_it_is_one_convolution_but_in_half_precision(dtype, autocast, one, monkeypatch):
    taken = []
    plain = of_maps._as_one_convolution
    monkeypatch.setattr(
        of_maps, '_as_one_convolution', lambda *args: taken.append(1) or plain(*args)
    )
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        conv_gelu(torch.randn(1, 30, 4, dtype=dtype), (6, 5), convolution().to(dtype))
    assert taken == [1] * one


def hooked() -> nn.Conv2d:
    dwconv = convolution()
    dwconv.register_forward_hook(lambda module, inputs, output: output)
    return dwconv


def patched() -> nn.Conv2d:
    dwconv = convolution()
    dwconv.forward = dwconv.forward
    return dwconv


@pytest.mark.parametrize(
    ('dwconv', 'reason'),
    [
        (hooked(), 'has hooks'),
        (patched(), 'forward of its own'),
        (nn.Sequential(convolution()), 'is a Sequential'),
        (parametrizations.weight_norm(convolution()), 'is a ParametrizedConv2d'),
        (convolution(kernel_size=5, padding=2), 'computes a depthwise 3x3'),
        (convolution(dilation=2, padding=2), 'computes a depthwise 3x3'),
        (convolution(groups=2), 'computes a depthwise 3x3'),
        (convolution(padding_mode='reflect'), 'pads with reflect'),
        (convolution(bias=False), 'no plain tensor'),
    ],
)
def test_what_is_no_plain_convolution_is_called(dwconv, reason, monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert reason in can_run_conv_gelu(torch.zeros(1, 9, 4), dwconv)


def test_hooks_for_all_modules_are_called_too():
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert 'hooks for all modules' in can_run_conv_gelu(torch.zeros(1, 9, 4), convolution())
    finally:
        handle.remove()


def test_what_the_kernel_does_not_take_says_why(monkeypatch):
    u, dwconv = torch.zeros(1, 10, 4), convolution()
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    reason = can_run_conv_gelu(u, dwconv)
    assert reason is not None
    assert 'float64' in can_run_conv_gelu(u.double(), dwconv)
    assert '4194304 tokens' in can_run_conv_gelu(torch.zeros(1).expand(1, 2**22, 512), dwconv)
    monkeypatch.setenv('CLUSTR_MM_KERNELS', 'dpc_knn,merge')
    assert can_run_conv_gelu(u, dwconv).endswith('add conv_gelu')
