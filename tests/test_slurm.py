"""The Slurm scripts: what they ask of srun. There is no Slurm here, so one that only says it."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


@pytest.fixture
def asked(tmp_path):
    """Runs a script and gives srun's own arguments, and those of what it starts."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)

    def ask(script, *arguments, **environment):
        done = subprocess.run(
            [TOOLS / script, *arguments],
            env={'PATH': f'{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin', **environment},
            capture_output=True,
            text=True,
        )
        words = done.stdout.splitlines()
        if done.returncode:
            return done.stderr, []
        place = words.index('python')
        return words[:place], words[place + 3 :]

    return ask


def test_the_fourth_word_is_the_work_folder_or_an_option(asked):
    own, started = asked('slurm_train.sh', 'gpu', 'job', 'a.py', 'runs/a', '--amp', GPUS='16')
    assert {'-p', 'gpu', '--job-name=job', '--ntasks=16', '--ntasks-per-node=8'} <= set(own)
    assert started == ['a.py', '--launcher', 'slurm', '--work-dir', 'runs/a', '--amp']
    _, started = asked('slurm_train.sh', 'gpu', 'job', 'a.py', '--resume')
    assert started == ['a.py', '--launcher', 'slurm', '--resume'], 'as mmseg has it'
    _, started = asked('slurm_train.sh', 'gpu', 'job', 'a.py')
    assert started == ['a.py', '--launcher', 'slurm']


def test_testing_takes_a_checkpoint_and_more_of_sruns_options(asked):
    own, started = asked('slurm_test.sh', 'gpu', 'job', 'a.py', 'a.pth', SRUN_ARGS='--gres=none -Q')
    assert own[-2:] == ['--gres=none', '-Q']
    assert started == ['a.py', 'a.pth', '--launcher', 'slurm']


def test_too_few_words_are_one_line_of_usage(asked):
    said, _ = asked('slurm_test.sh', 'gpu', 'job', 'a.py')
    assert said.startswith('usage: ') and said.count('\n') == 1
