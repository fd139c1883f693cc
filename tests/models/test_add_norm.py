"""The residual sum's kernels: under Triton's interpreter or on a GPU, and who takes them."""

import sys
from pathlib import Path

import pytest
import torch
from triton_process import both_ways, run_checks

from clustr_mm.models.add_norm import can_run_add_norm

pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)


@both_ways
def test_kernels(interpreted):
    run_checks(Path(__file__).with_name('add_norm_checks.py'), interpreted)


def test_what_cannot_run_says_why(monkeypatch):
    x = torch.zeros(1, 10, 4)
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    assert can_run_add_norm(x, x).startswith('x is on cpu; the kernels need a GPU')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert can_run_add_norm(x, x.half()) is None
    assert 'float64' in can_run_add_norm(x, x.double())
    wide = torch.zeros(1, 1, 5000)
    assert '5000 channels' in can_run_add_norm(wide, wide)
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'install triton' in can_run_add_norm(x, x)
