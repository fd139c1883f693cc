"""The MLP's kernels: under Triton's interpreter or on a GPU, and who takes them."""

import sys
from pathlib import Path

import pytest
import torch
from triton_process import both_ways, run_checks

from clustr_mm.ops.conv_gelu import conv_gelu
from clustr_mm.ops.conv_gelu.conv_gelu import can_run_conv_gelu

pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)


@both_ways
def test_kernels(interpreted):
    run_checks(Path(__file__).with_name('conv_gelu_checks.py'), interpreted)


def test_what_cannot_run_says_why(monkeypatch):
    u = torch.zeros(1, 10, 4)
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    assert can_run_conv_gelu(u).startswith('x is on cpu; the kernels need a GPU')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert can_run_conv_gelu(u) is None
    assert 'float64' in can_run_conv_gelu(u.double())
    assert '4194304 tokens' in can_run_conv_gelu(torch.zeros(1).expand(1, 2**22, 512))
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'install triton' in can_run_conv_gelu(u)


def test_a_frozen_convolution_and_frozen_tokens(monkeypatch):
    """Gradients go to whom they are asked for."""
    monkeypatch.setattr(conv_gelu, '_conv_gelu', None)  # nothing here is computed
    u, weight, bias = torch.zeros(1, 4, 2), torch.zeros(2, 1, 3, 3), torch.zeros(2)
    with torch.device('meta'):
        weight, u = weight.to('meta').requires_grad_(), u.to('meta')
        out = torch.ops.clustr_mm.conv_gelu(u, weight, bias.to('meta'), 2, 2)
    out.sum().backward()
    assert weight.grad.shape == (2, 1, 3, 3) and u.grad is None
