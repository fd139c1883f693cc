"""The benchmark's command lines, and the memory that the README promises."""

import csv
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from clustr_mm.ops.clustering import can_run_native

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'analysis' / 'benchmark.py'


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


def test_speed_prints_ratios_and_writes_a_table(run, tmp_path):
    photograph = tmp_path / 'photograph.png'
    Image.effect_noise((48, 40), 50).save(photograph)
    out, name, rows = run(
        'speed', '--models', 'clustr_t+recluster_every=0', 'clustr_t', '--shape', 32, '32x64',
        '--batch', 1, '--rounds', 1, '--train', '--amp', 'bf16', '--images', photograph,
    )  # fmt: skip
    assert 'train, batch 1 of photographs, bf16, eager' in out
    assert {row['content'] for row in rows} == {'photographs'}
    assert name.startswith('speed-train_bf16_torch')
    assert [(row['images'], row['model']) for row in rows] == [
        ('32x32', 'clustr_t+recluster_every=0'),
        ('32x32', 'clustr_t'),
        ('32x64', 'clustr_t+recluster_every=0'),
        ('32x64', 'clustr_t'),
    ]
    for row in rows:
        assert row['baseline'] == 'clustr_t' and row['mode'] == 'train'
        assert float(row['seconds']) > 0 and float(row['cpu_seconds']) > 0
        assert float(row['ratio']) == 1 or row['model'] != 'clustr_t'
        assert float(row['images_per_second']) == pytest.approx(1 / float(row['seconds']), rel=1e-3)


def test_a_bare_python_with_torch_will_do(tmp_path):
    program = f"""
import runpy, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpose', 'mmpretrain', 'cv2', 'safetensors'):
    sys.modules[name] = None  # as where it is not installed
sys.argv[1:] = 'speed --models clustr_t --shape 32 --batch 1 --rounds 1 --device cpu --out'.split()
sys.argv.append({str(tmp_path)!r})
runpy.run_path({str(TOOL)!r}, run_name='__main__')
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (share,) = re.findall(r'clustr_t .* (\d+) %', done.stdout)
    assert 0 <= int(share) < 100  # of what a large product reaches


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('most', [16_000, pytest.param(66_800, marks=pytest.mark.long)])
def test_clustering_takes_linear_memory(run, most):
    compiled = can_run_native(torch.zeros(1, 1, 1)) is None
    backend = 'native' if compiled else 'tiled'
    out, _, rows = run('clustering', '--tokens', most, 1000, 4000, '--backends', backend)
    assert [int(row['tokens']) for row in rows] == [1000, 4000, most]
    assert float(out.splitlines()[-2].rpartition('memory ~ N^')[2]) < 1.15
    # The README says 27 MiB of 66,800 tokens; one N x N matrix of float32 would take 17,000 MiB,
    # and of 16,000 tokens 977.
    assert float(rows[-1]['peak_mib']) < (60 if compiled else 380)


def test_clustering_of_a_photograph_is_drawn_beside_other_runs(run, tmp_path):
    photograph, picture = tmp_path / 'photograph.png', tmp_path / 'growth.png'
    Image.linear_gradient('L').save(photograph)
    common = ['clustering', '--tokens', 60, 120, '--backends', 'tiled', '--channels', 16]
    _, name, rows = run(*common)
    assert {row['content'] for row in rows} == {'noise'}
    (tmp_path / name).rename(tmp_path / 'noise_run.csv')
    more = ['--images', photograph, '--plot', picture, '--beside', tmp_path / 'noise_run.csv']
    _, _, rows = run(*common, *more)
    assert {row['content'] for row in rows} == {'photographs'}
    assert picture.stat().st_size > 5000
    with pytest.raises(SystemExit, match='--beside: .*none.csv'):
        run(*common, '--plot', picture, '--beside', tmp_path / 'none.csv')


def test_backends_that_cannot_run_are_left_out_with_the_reason(run):
    out, name, rows = run('clustering', '--tokens', 100, 5000, '--channels', 16, '--batch', 2)
    assert name.startswith('clustering_fp32')
    found = {(row['backend'], row['tokens']) for row in rows}
    assert found >= {('tiled', '100'), ('tiled', '5000'), ('reference', '100')}
    assert ('reference', '5000') not in found, 'its matrices would take gigabytes'
    if not torch.cuda.is_available():
        assert 'triton is left out: ' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['speed', '--models', 'vgg'], "model is 'vgg'; use one of clustr_t"),
        (['speed', '--batch', '0'], "argument --batch: '0' is no whole number of at least 1"),
        (['speed', '--shape', '32xmany'], "argument --shape: 'many' is no whole number"),
        (['clustering', '--backends', 'faiss'], "'faiss'"),
        (['--no-such-option'], 'see --help'),
    ],
)
def test_mistakes_are_a_line(run, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_there_is_not_is_refused():
    main = runpy.run_path(str(TOOL))['main']
    with pytest.raises(SystemExit, match='--device cuda: torch sees no GPU here; say cpu'):
        main(['speed', '--device', 'cuda'])
    with pytest.raises(SystemExit, match='--backends triton: '):
        main(['clustering', '--device', 'cpu', '--backends', 'triton', '--tokens', '10'])
