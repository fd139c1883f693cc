"""Runs checks of Triton kernels in a process of their own, under the interpreter or on a GPU.

Triton's interpreter is chosen by the environment when triton is first imported: so the rest of the
suite does not see it.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

both_ways = pytest.mark.parametrize(
    'interpreted',
    [pytest.param('1', id='interpreter'), pytest.param('0', id='gpu', marks=pytest.mark.gpu)],
)


def run_checks(path: Path, interpreted: str, marks: str = 'not long') -> None:
    if interpreted == '0' and not torch.cuda.is_available():
        pytest.skip('needs an NVIDIA GPU')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', marks, path.name],
        cwd=path.parent,
        env={**os.environ, 'TRITON_INTERPRET': interpreted},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-20000:], done.stderr[-2000:])
    assert done.returncode == 0


@contextmanager
def poisoned_memory():
    """Every new buffer is full of NaN or of the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
