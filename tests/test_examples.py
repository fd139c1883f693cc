"""The examples run as written, and learn."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clustr_mm.engine import UserError

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'examples' / 'train_on_sequences.py'
EXAMPLE = runpy.run_path(str(SCRIPT))


def test_sequences_are_padded_and_have_an_answer():
    tokens, mask, answers = EXAMPLE['Recordings'](0).batch(64)
    lengths = mask.sum(1)
    assert tokens.shape == (64, lengths.max(), 32) and mask.dtype == torch.bool
    assert 32 <= lengths.min() < 64 and 224 < lengths.max() <= 256
    assert not tokens[~mask].any() and set(answers.tolist()) == {0, 1, 2, 3}
    again = EXAMPLE['Recordings'](0).batch(64)
    other = EXAMPLE['Recordings'](1).batch(64)
    assert torch.equal(again[0], tokens) and not torch.equal(other[2], answers)


@pytest.mark.parametrize('attention', ['cluster', 'dense'])
def test_an_answer_does_not_depend_on_padding_and_batch_mates(attention):
    torch.manual_seed(0)
    model = EXAMPLE['Listener'](attention).double().eval()
    tokens, mask, _ = EXAMPLE['Recordings'](0).batch(4)
    tokens = tokens.double()
    together = model(tokens.masked_fill(~mask[..., None], 1e30), mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-12)


def test_mistakes_are_named():
    with pytest.raises(UserError, match='--steps is 1; use at least 2'):
        EXAMPLE['main'](['--steps', '1'])
    with pytest.raises(UserError, match='--seed is -1'):
        EXAMPLE['main'](['--seed', '-1'])


def test_the_script_runs():
    command = [sys.executable, str(SCRIPT), '--steps', '2', '--attention', 'cluster']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r'guessing: 25.0 % right\ncluster attention: \d+\.\d % right', done.stdout)


@pytest.mark.long
@pytest.mark.parametrize('attention', ['cluster', 'dense'])
def test_a_model_learns_to_look_the_answer_up(attention):
    assert EXAMPLE['accuracy'](EXAMPLE['train'](attention, 200, 0)) > 0.8
