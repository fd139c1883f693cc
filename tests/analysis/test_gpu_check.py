"""The check on a GPU, tried on a CPU: its parts, its processes, its verdicts."""

import csv
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clustr_mm.analysis.gpu_parts import PARTS
from clustr_mm.analysis.gpu_sizes import FULL, TINY, Reading
from clustr_mm.analysis.verdicts import criteria, judge, summary
from clustr_mm.engine import UserError

pytest.importorskip('triton', minversion='3.3')
if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'analysis' / 'gpu_check.py'


def run(*arguments, environment=None):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match='torch sees no GPU here.*--dry-run'):
        runpy.run_path(str(TOOL))['main']([])


def test_a_part_runs_apart_and_is_written_and_judged(tmp_path):
    done = run('--dry-run', '--only', 'clustering', '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    table, page = (
        next(tmp_path.glob(f'gpu-check-dry-run_*{suffix}')) for suffix in ('.csv', '.md')
    )
    rows = list(csv.DictReader(table.open()))
    assert {row['part'] for row in rows} == {'clustering'}
    subjects = {row['subject'] for row in rows}
    for number in range(6):  # K0 to K5
        assert any(subject.startswith(f'K{number} ') for subject in subjects)
    assert all('--dry-run' in row['command'] and row['torch'] == torch.__version__ for row in rows)
    same = [r for r in rows if r['quantity'] == "tokens with the centre of 'tiled'"]
    assert len(same) == 4 and all(float(row['value']) > 0.9 for row in same)
    text = page.read_text()
    assert text.startswith('# DRY RUN on a CPU: the figures mean nothing')
    assert '3. dpc_knn, fp16x3, 60 x 16: ms' in text and '- command: python' in text
    assert 'not measured' in done.stdout and 'Traceback' not in done.stderr


# What may be missing on a borrowed machine.
WITHOUT_OPENMMLAB = """
import json, sys
for name in ('mmcv', 'mmdet', 'mmseg', 'mmpose', 'mmpretrain', 'timm'):
    sys.modules[name] = None
import torch
from pathlib import Path
from clustr_mm.analysis.gpu_parts import PARTS
from clustr_mm.analysis.gpu_sizes import TINY
for part in ('correctness', 'block', 'models', 'tiles', 'growth'):
    for reading in PARTS[part](torch.device('cpu'), TINY, Path(sys.argv[1])):
        print('reading', json.dumps(reading.row()))
try:
    next(PARTS['eager'](torch.device('cpu'), TINY, Path(sys.argv[1])))
except Exception as error:
    print('refused', error)
"""


def test_parts_run_without_openmmlabs_task_libraries(tmp_path):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WITHOUT_OPENMMLAB, str(tmp_path)],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(' ', 1) for line in done.stdout.splitlines()]
    readings = [Reading(**json.loads(rest)) for word, rest in lines if word == 'reading']
    skipped = {r.subject: r.note for r in readings if r.quantity == 'skipped'}
    assert 'mmseg cannot be imported' in skipped['upernet']
    assert 'mmdet cannot be imported' in skipped['mask_rcnn']
    for criterion in criteria(TINY):
        if criterion.part == 'correctness':
            assert judge(criterion, readings, {})[0] is True
    tiles = [r for r in readings if r.part == 'tiles']
    assert [r.subject[:2] for r in tiles if r.note == 'chosen'] == ['K1', 'K2', 'K3']
    assert len(tiles) > 6
    assert {r.subject for r in readings if r.quantity == "memory's exponent"} >= {'tiled'}
    assert (tmp_path / 'growth.png').stat().st_size > 10_000
    refused = [rest for word, rest in lines if word == 'refused']
    assert 'mmdet cannot be imported' in refused[0] and 'nor timm' in refused[0]


@pytest.mark.long
def test_all_parts_at_tiny_sizes(tmp_path):
    pytest.importorskip('mmdet')
    done = run('--dry-run', '--minutes', 30, '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[: len(PARTS)]
    assert [line.split(':')[0] for line in first] == list(PARTS)
    assert not any(';' in line for line in first), first
    # All but the comparison with packages that are not installed has a verdict.
    assert done.stdout.count('not measured') == 1


def test_a_part_that_hangs_or_fails_is_reported(tmp_path):
    tool = runpy.run_path(str(TOOL))
    slow = subprocess.Popen(
        [sys.executable, '-c', 'import time; print("a", flush=True); time.sleep(60)'],
        stdout=subprocess.PIPE,
    )
    lines = tool['lines_until'](slow.stdout, time.monotonic() + 5)
    try:
        assert next(lines) == 'a'
        with pytest.raises(TimeoutError):
            next(lines)
    finally:
        slow.kill()
        slow.wait()
    log = tmp_path / 'log'
    with log.open('w') as file:
        options = tool['parse_args'](['--out', str(tmp_path)])
        # Without a GPU the part fails, with one it has no time.
        reason = tool['run_apart']('tiles', options, 20, file, print)
    assert reason is not None and ('status 1' in reason or 'took more than' in reason)


def reading(value, part='clustering', subject='dpc_knn, fp16x3', quantity='ms'):
    return Reading(part, subject, quantity, value)


def test_verdicts():
    lines = {c.text: c for c in criteria(FULL)}
    fast = lines['3. dpc_knn, fp16x3, 66800 x 64: ms']
    assert judge(fast, [reading(4.9)], {}) == (True, '4.9')
    assert judge(fast, [reading(5.1)], {}) == (False, '5.1')
    assert judge(fast, [reading(float('nan'))], {})[0] is False
    assert judge(fast, [reading(1.0, subject='dpc_knn, tf32')], {}) == (None, 'not measured')
    assert judge(fast, [], {'clustering': 'took too long'}) == (None, 'took too long')
    speed = lines['1. clustr_s, 224x224, batch 64, training, compiled: throughput / pvtv2_b2']
    where = dict(
        part='compiled',
        subject='clustr_s, training, 224x224, batch 64',
        quantity='throughput / pvtv2_b2',
    )
    assert judge(speed, [reading(0.91, **where)], {})[0] is True
    assert judge(speed, [reading(0.89, **where)], {})[0] is False
    detection = next(c for text, c in lines.items() if 'exact global' in text)
    reason = Reading('models', 'mask_rcnn', 'skipped', None, 'mmdet is missing')
    assert judge(detection, [reason], {}) == (None, 'mmdet is missing')
    # The worst of several counts.
    merge = lines["Kernels: merge's error / plain PyTorch's"]
    several = [reading(v, 'correctness', s, merge.quantity) for v, s in ((0.5, 'a'), (2.5, 'b'))]
    assert judge(merge, several, {}) == (False, '2.5')
    page = summary(FULL, [reading(5.1), *several], {'tiles': 'hung'}, {'device': 'x'}, 'Check')
    assert '| 3. dpc_knn, fp16x3, 66800 x 64: ms | at most 5 | 5.1 | **fails** |' in page
    assert '- tiles: hung' in page and '- device: x' in page
