"""A measured call: its memory is what it takes at most, its time the processor's."""

import sys
import time

import pytest
import torch

from clustr_mm.analysis import measure

CPU = torch.device('cpu')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


def take_and_free(mebibytes):
    torch.ones(mebibytes, 2**18)
    return mebibytes


@linux
def test_peak_memory_is_above_what_was_in_use():
    held = torch.ones(200, 2**18)
    result, cost = measure(lambda: take_and_free(64), CPU)
    assert result == 64
    assert 60 <= cost.peak_mib <= 80
    assert held.shape[0] == 200


@linux
def test_memory_that_was_freed_before_hides_no_peak():
    # Small pieces, which malloc keeps when they are freed.
    pieces = [torch.ones(2**10) for _ in range(40_000)]  # 160 MB
    del pieces
    _, cost = measure(lambda: [torch.ones(2**10) for _ in range(20_000)], CPU)
    assert 70 <= cost.peak_mib <= 110


def test_time_is_the_processors():
    _, cost = measure(lambda: time.sleep(0.3), CPU)
    assert cost.seconds < 0.1
