"""The benchmark's command lines, and the memory that the README promises."""

import csv
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clustr_mm.engine import UserError
from clustr_mm.ops.clustering import can_run_native

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'analysis' / 'benchmark.py'


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the tool here; returns what it printed, and the rows of the table that it wrote."""
    main = runpy.run_path(str(TOOL))['main']

    def run(*arguments):
        arguments = [str(argument) for argument in arguments] + ['--device', 'cpu']
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
        main([*arguments, '--out', str(tmp_path)])
        out = capsys.readouterr().out
        table = Path(next(line for line in out.splitlines() if line.startswith('table: '))[7:])
        with table.open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            assert row['torch'] == torch.__version__ and row['device']
            assert shlex.split(row['command'])[1:] == ['benchmark.py', *arguments]
        assert f'torch{torch.__version__}' in table.name
        return out, table.name, rows

    return run


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_clustering_a_detection_image_takes_linear_memory():
    done = subprocess.run(
        [sys.executable, str(TOOL), 'memory', '--only', 'dpc_knn'],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=True,
    )
    line = done.stdout.splitlines()[-1]
    assert '66800' in line
    # The README says 27 MiB; one N x N matrix of float32 would take 17,000 MiB.
    limit = 60 if can_run_native(torch.zeros(1, 1, 1)) is None else 380
    assert float(line.split()[0]) < limit


def test_speed_prints_ratios_and_writes_a_table(run):
    out, name, rows = run(
        'speed', '--models', 'clustr_t+recluster_every=0', 'clustr_t', '--shape', 64, '32x64',
        '--batch', 1, '--rounds', 1, '--train', '--dtype', 'bfloat16',
    )  # fmt: skip
    assert 'training step, backbone, batch 1, bfloat16, eager' in out
    assert name.startswith('speed-backbone-train_bfloat16_torch')
    assert [(row['images'], row['model']) for row in rows] == [
        ('64x64', 'clustr_t+recluster_every=0'),
        ('64x64', 'clustr_t'),
        ('32x64', 'clustr_t+recluster_every=0'),
        ('32x64', 'clustr_t'),
    ]
    for row in rows:
        assert row['baseline'] == 'clustr_t' and row['mode'] == 'train'
        assert float(row['seconds']) > 0 and float(row['cpu_seconds']) > 0
        assert float(row['ratio']) == 1 or row['model'] != 'clustr_t'
        assert float(row['images_per_second']) == pytest.approx(1 / float(row['seconds']), rel=1e-3)


def test_clustering_has_the_share_of_the_roofline(run):
    out, name, rows = run('clustering', '--tokens', 100, 300, '--channels', 16, '--batch', 2)
    assert name.startswith('clustering_float32') and 'triton is left out: Triton' in out
    assert {(row['backend'], row['tokens']) for row in rows} >= {('tiled', '100'), ('tiled', '300')}
    for row in rows:
        share = float(row['product_seconds']) / float(row['seconds'])
        assert float(row['share']) == pytest.approx(share, rel=1e-3)


def test_growth_has_exponents_and_a_picture(run, tmp_path):
    out, name, rows = run('growth', '--tokens', 400, 200, '--channels', 8, '--backends', 'tiled')
    assert [row['tokens'] for row in rows] == ['200', '400'] and 'tiled: time ~ N^' in out
    assert rows[0]['time_exponent'] == rows[1]['time_exponent'] != ''
    assert (tmp_path / name).with_suffix('.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['speed', '--models', 'vgg'], "model is 'vgg'; use one of clustr_t"),
        (['speed', '--batch', '0'], '--batch is 0; use at least 1'),
        (['growth', '--backends', 'triton'], '--backends triton: Triton interprets'),
        (['clustering', '--backends', 'faiss'], '--backends faiss: there is no such backend'),
    ],
)
def test_mistakes_are_a_line(run, arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_there_is_not_is_refused():
    with pytest.raises(UserError, match='--device cuda: torch sees no GPU here; say cpu'):
        runpy.run_path(str(TOOL))['main'](['growth', '--device', 'cuda'])
