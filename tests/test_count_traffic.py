"""The tool that counts what steps move: its table and its mistakes."""

import runpy
from pathlib import Path

import pytest

from clustr_mm.engine import UserError

pytest.importorskip('triton', minversion='3.3')

TOOL = runpy.run_path(
    str(Path(__file__).resolve().parents[1] / 'tools' / 'analysis' / 'count_traffic.py')
)


@pytest.mark.parametrize('train', [[], ['--train']])
def test_table(capsys, train):
    models = ['clustr_t', 'clustr_t+recluster_every=0']
    TOOL['main'](['--models', *models, '--batch', '2', '--shape', '64', '64', '--top', '3', *train])
    lines = capsys.readouterr().out.splitlines()
    exact, once = (line.split('|')[1:-1] for line in lines if '(clustr_mm)' in line)
    assert exact[0].strip() == 'clustr_t (clustr_mm)'
    assert float(once[6]) == float(once[7]) == 1, 'the baseline is the last'
    assert int(exact[1].replace(',', '')) > int(once[1].replace(',', ''))
    assert sum('aten.' in line or 'clustr_mm.' in line for line in lines) == 6


def test_whole_models(capsys):
    pytest.importorskip('mmseg.models')
    arguments = ['--batch', '2', '--shape', '64', '64', '--train']
    alone, whole = {}, {}
    for counts, extra in ((alone, []), (whole, ['--task', 'upernet'])):
        TOOL['main'](['--models', 'clustr_t', *arguments, *extra])
        lines = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
        (row,) = (row for row in lines if row and row[0].strip().startswith('clustr_t'))
        counts.update(name=row[0].strip(), operators=int(row[1].replace(',', '')))
    assert whole['name'] == 'clustr_t (upernet)'
    assert whole['operators'] > alone['operators'] + 100


def test_the_clusterings_kernels(capsys):
    TOOL['main'](['--clustering', '20000', '64'])
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    density = {row[0].strip(): row for row in rows if len(row) > 1 and 'K1' in row[1]}
    operations = {precision: float(row[2]) for precision, row in density.items()}
    assert operations['fp16x3'] == pytest.approx(3 * operations['fp16'], abs=2e-3)
    assert operations['fp16'] == pytest.approx(2 * 20_000**2 * 64 / 1e12, abs=1e-3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch', '0'], 'at least 1'),
        (['--clustering', '0', '64'], 'at least 1'),
        (['--models', 'clustr_x'], 'clustr_x'),
        (['--models', 'clustr_x', '--task', 'upernet'], 'clustr_x'),
        (['--task', 'yolo'], "invalid choice: 'yolo'"),
        (['--modles', 'clustr_s'], 'unrecognized'),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        TOOL['main'](arguments)
