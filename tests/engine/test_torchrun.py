"""What dist_*.sh and slurm_*.sh make of their arguments and the environment."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from clustr_mm.engine import UserError
from clustr_mm.engine.errors import run_tool
from clustr_mm.engine.torchrun import main, torchrun_arguments

ROOT = Path(__file__).resolve().parents[2]
TRAIN, TEST = str(ROOT / 'tools' / 'train.py'), str(ROOT / 'tools' / 'test.py')
CONFIG = str(ROOT / 'configs' / 'mmseg' / 'upernet_clustr_t_mini.py')


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT', 'MAX_RESTARTS'):
        monkeypatch.delenv(name, raising=False)
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.setenv(name, '1')  # what is set here, monkeypatch takes back


def test_one_machine_takes_a_free_port_and_passes_options_on():
    found = torchrun_arguments(TRAIN, [CONFIG, '2', '--device', 'cpu', '--amp'])
    assert '--nproc-per-node=2' in found
    assert '--rdzv-endpoint=127.0.0.1:0' in found
    assert found[found.index(TRAIN) :] == [
        TRAIN, CONFIG, '--launcher=pytorch', '--device', 'cpu', '--amp',
    ]  # fmt: skip


def test_several_machines_meet_at_the_first(monkeypatch):
    for name, value in dict(NNODES='3', NODE_RANK='2', MASTER_ADDR='host0').items():
        monkeypatch.setenv(name, value)
    command = [CONFIG, '1', '--device=cpu']
    found = torchrun_arguments(TRAIN, command)
    assert {'--nnodes=3', '--node-rank=2', '--master-addr=host0', '--master-port=29500'} <= {*found}
    monkeypatch.setenv('MAX_RESTARTS', '4')
    monkeypatch.setenv('PORT', '1234')
    found = torchrun_arguments(TRAIN, command)
    assert {'--max-restarts=4', '--rdzv-endpoint=host0:1234', '--rdzv-conf=is_host=0'} <= {*found}


def test_a_run_that_may_restart_resumes(monkeypatch):
    monkeypatch.setenv('MAX_RESTARTS', '1')
    command = [CONFIG, '1', '--device=cpu']
    assert torchrun_arguments(TRAIN, command)[-1] == '--resume'
    given = torchrun_arguments(TRAIN, [*command, '--resume', 'a.pth'])
    assert given[-2:] == ['--resume', 'a.pth'] and given.count('--resume') == 1
    assert '--resume' not in torchrun_arguments(TEST, [CONFIG, CONFIG, '1', '--device=cpu'])


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.delenv('MKL_NUM_THREADS')
    torchrun_arguments(TRAIN, [CONFIG, '2', '--device=cpu'])
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert os.environ['OMP_NUM_THREADS'] == os.environ['MKL_NUM_THREADS'] == str(share)


@pytest.mark.parametrize(
    ('tool', 'arguments', 'environment', 'words'),
    [
        (TRAIN, [], {}, 'CONFIG GPUS'),
        (TRAIN, [CONFIG], {}, 'CONFIG GPUS'),
        (TRAIN, ['configs/no.py', '2'], {}, 'configs/no.py does not exist'),
        (TRAIN, [CONFIG.replace('_t_', '_x_'), '2'], {}, 'upernet_clustr_t_mini.py'),
        (TEST, [CONFIG, 'no.pth', '2'], {}, 'no.pth does not exist'),
        (TRAIN, [CONFIG, 'two'], {}, "GPUS .* not 'two'"),
        (TRAIN, [CONFIG, '0'], {}, "1 or more, not '0'"),
        (TRAIN, [CONFIG, '1'], dict(NNODES='x'), 'NNODES'),
        (TRAIN, [CONFIG, '1'], dict(NNODES='2'), 'MASTER_ADDR'),
        (TRAIN, [CONFIG, '1'], dict(NNODES='2', NODE_RANK='2'), 'NODE_RANK .* 0 to 1'),
        (TRAIN, [CONFIG, '1'], dict(PORT='70000'), 'PORT .* 65535'),
        (TRAIN, [CONFIG, '1'], dict(MAX_RESTARTS='-1'), 'MAX_RESTARTS'),
    ],
)
def test_bad_use_is_one_line(tool, arguments, environment, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as error:
        torchrun_arguments(tool, arguments)
    assert '\n' not in str(error.value)


def test_port_that_is_taken_is_refused(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv('PORT', port)
        assert run_tool(lambda _: main([TRAIN, CONFIG, '1', '--device=cpu'])) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: PORT={port} cannot be used here (Address already in use)')


@pytest.mark.gpu
def test_more_processes_than_gpus_are_refused():
    with pytest.raises(UserError, match=f'torch sees {torch.cuda.device_count()} here'):
        torchrun_arguments(TRAIN, [CONFIG, '99'])


def slurm(tmp_path, script, *arguments, **environment):
    """Runs a script with a stand-in for srun that shows what it was given."""
    stand_in = tmp_path / 'bin' / 'srun'
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\necho "port=$MASTER_PORT"; for a in "$@"; do echo "$a"; done\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        [ROOT / 'tools' / script, *arguments],
        env={'PATH': f'{stand_in.parent}:/usr/bin:/bin', 'PYTHON': 'py', **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_slurm_scripts_ask_for_what_they_are_told(tmp_path):
    environment = dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='3', PORT='1234')
    environment['SRUN_ARGS'] = '--gres=none --time=1:00'
    given = ['debug', 'my run', CONFIG, '--amp', '--cfg-options', 'a=[1, 2]']
    status, lines, _ = slurm(tmp_path, 'slurm_train.sh', *given, **environment)
    assert status == 0
    assert lines == [
        'port=1234', '--partition=debug', '--job-name=my run', '--gres=gpu:4', '--ntasks=16',
        '--ntasks-per-node=4', '--cpus-per-task=3', '--kill-on-bad-exit=1', '--gres=none',
        '--time=1:00', 'py', '-u', TRAIN, CONFIG, '--amp', '--cfg-options', 'a=[1, 2]',
        '--launcher=slurm',
    ]  # fmt: skip
    status, lines, _ = slurm(tmp_path, 'slurm_test.sh', 'debug', 'name', CONFIG, CONFIG, GPUS='2')
    assert status == 0
    assert {'--ntasks=2', '--ntasks-per-node=2', '--cpus-per-task=5', TEST} <= set(lines)
    assert 20000 <= int(lines[0].removeprefix('port=')) < 30000


@pytest.mark.parametrize(
    ('arguments', 'environment', 'words'),
    [
        (['debug', 'name'], {}, 'give PARTITION JOB_NAME CONFIG CHECKPOINT'),
        (['debug', 'name', CONFIG, 'no.pth'], {}, 'no.pth does not exist'),
        (['debug', 'name', CONFIG, CONFIG], dict(GPUS='many'), "not 'many'"),
        (['debug', 'name', CONFIG, CONFIG], dict(CPUS_PER_TASK='0'), 'CPUS_PER_TASK'),
    ],
)
def test_bad_use_of_slurm_scripts_is_one_line(tmp_path, arguments, environment, words):
    status, lines, errors = slurm(tmp_path, 'slurm_test.sh', *arguments, **environment)
    assert status == 1 and not lines
    (line,) = errors.splitlines()
    assert line.startswith('error: ') and words in line
