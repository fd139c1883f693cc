"""The benchmark's command lines, and the memory that the README promises."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'analysis' / 'benchmark.py'


def run(*arguments):
    done = subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_clustering_a_detection_image_takes_linear_memory():
    line = run('memory', '--only', 'dpc_knn').splitlines()[-1]
    assert '66800' in line
    # One N x N matrix of float32 would take 17,800 MB.
    assert float(line.split()[0]) * 1.048576 < 400


def test_speed_prints_ratios_and_writes_a_table(tmp_path):
    table = tmp_path / 'speed.csv'
    out = run(
        'speed', '--models', 'clustr_t+recluster_every=0', 'clustr_t', '--sizes', 64, '--batch', 1,
        '--rounds', 2, '--train', '--csv', table,
    )  # fmt: skip
    assert 'training step, batch 1' in out and '1.00 x clustr_t' in out
    header, first, second = table.read_text().splitlines()
    assert header == 'size,model,seconds,fastest,ratio,baseline'
    assert first.startswith('64,clustr_t+recluster_every=0,') and second.endswith(',clustr_t')
