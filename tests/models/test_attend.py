"""The attention's kernels: under Triton's interpreter or on a GPU, and who takes them."""

import sys
from pathlib import Path

import pytest
import torch
from triton_process import both_ways, run_checks

from clustr_mm.models.attend import can_run_attend

pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)


@both_ways
def test_kernels(interpreted):
    run_checks(Path(__file__).with_name('attend_checks.py'), interpreted)


def test_what_cannot_run_says_why(monkeypatch):
    q, kv = torch.zeros(1, 10, 32).half(), torch.zeros(1, 7, 64).half()
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    assert can_run_attend(q, [kv], 1).startswith('x is on cpu; the kernels need a GPU')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert can_run_attend(q, [kv, kv], 2) is None
    assert 'float32' in can_run_attend(q.float(), [kv], 1)
    assert 'all of one dtype' in can_run_attend(q, [kv, kv.bfloat16()], 1)
    assert 'there are 3 scales' in can_run_attend(q, [kv] * 3, 1)
    assert '257 tokens' in can_run_attend(q, [kv, kv.new_zeros(1, 257, 64)], 1)
    assert '128 channels' in can_run_attend(q.new_zeros(1, 10, 128), [kv], 1)
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'install triton' in can_run_attend(q, [kv], 1)
