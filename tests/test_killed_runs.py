"""Training killed at any moment, also while it saves, ends bit by bit as if nothing had been.

One run is left alone. Another is killed outright and started again with ``--resume`` until as many
kills were made as asked for and it has ended.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')

from clustr_mm.datasets.mini.mini import MiniData, build

ROOT = Path(__file__).resolve().parents[1]
LEAF = ROOT / 'configs' / 'mmseg' / 'upernet_clustr_pvtb0_mini.py'
OPTIONS = [
    'train_dataloader.batch_size=2', 'model.data_preprocessor.size=(64,64)',
    'model.decode_head.channels=32',
    'model.backbone.drop_path_rate=0.2', 'default_hooks.checkpoint.interval=1',
    'default_hooks.checkpoint.max_keep_ckpts=1', 'default_hooks.logger.interval=1',
    'train_dataloader.num_workers=1', 'val_dataloader.num_workers=0',
]  # fmt: skip


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A few small scenes in ADE20K's layout."""
    mini = MiniData(layout='ade20k', train=8, val=2, size=(64, 64))
    return build(tmp_path_factory.mktemp('data') / 'mini', mini)['ade20k']


def start(processes, steps, data, folder):
    command = [sys.executable, 'tools/train.py', LEAF]
    if processes > 1:
        command = ['tools/dist_train.sh', LEAF, processes]
    command += ['--data-root', data, '--work-dir', folder, '--device', 'cpu', '--resume']
    length = [f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={steps // 2}']
    folder.mkdir(exist_ok=True)
    with open(folder / 'said.txt', 'a') as said:
        return subprocess.Popen(
            [*map(str, command), '--cfg-options', *OPTIONS, *length],
            cwd=ROOT,
            env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def saved(folder):
    return {path.name for path in folder.glob('iter_*.pth*')}


def kill_somewhere(process, folder, chance):
    """Kills a run and all that it started, some part of a step after it has saved the next."""
    before = saved(folder)
    while process.poll() is None and saved(folder) == before:
        time.sleep(0.002)  # the first change is the file that is being written
    time.sleep(chance.choice([0, chance.uniform(0, 0.4)]))
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def check(processes, kills, steps, data, tmp_path):
    alone, killed = tmp_path / 'alone', tmp_path / 'killed'
    left_alone = start(processes, steps, data, alone)
    chance, made = random.Random(0), 0
    while True:
        run = start(processes, steps, data, killed)
        if made < kills and kill_somewhere(run, killed, chance):
            made += 1
            continue
        assert run.wait() == 0, (killed / 'said.txt').read_text()[-4000:]
        if made >= kills:
            break
        killed.rename(tmp_path / f'killed_{made}')  # it ended first: another run takes the rest
    assert left_alone.wait() == 0, (alone / 'said.txt').read_text()[-4000:]
    for folder in (*tmp_path.glob('killed_*'), killed):
        compare(alone, folder, steps)
    assert not list(killed.glob('*.part'))


def compare(one, other, steps):
    one, other = (
        torch.load(folder / f'iter_{steps}.pth', weights_only=False) for folder in (one, other)
    )
    for part in ('state_dict', 'optimizer'):
        assert str(one[part]) == str(other[part])
    assert all(torch.equal(v, other['state_dict'][k]) for k, v in one['state_dict'].items())


@pytest.mark.slow
def test_a_kill(data, tmp_path):
    check(1, 1, 4, data, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(('processes', 'kills'), [(1, 20), (2, 10)])
def test_many_kills(processes, kills, data, tmp_path):
    check(processes, kills, 12, data, tmp_path)
