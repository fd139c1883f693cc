"""The mini data set on disk: whole or not there, never over somebody else's files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clustr_mm.datasets.mini.mini import MANIFEST, MiniData, MiniDataError, build

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'make_mini_data.py'
SMALL = MiniData('ade20k', train=3, val=2, size=(48, 64))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_same_request_gives_the_same_bytes(tmp_path):
    build(tmp_path / 'a', SMALL)
    build(tmp_path / 'b', SMALL)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')


def test_longer_data_set_begins_with_the_shorter(tmp_path):
    short = build(tmp_path / 'a', SMALL)['ade20k']
    long = build(tmp_path / 'b', MiniData('ade20k', 4, 2, (48, 64)))['ade20k']
    below = set(contents(short).items())
    assert below < set(contents(long).items())


def test_second_request_touches_nothing(tmp_path):
    root = build(tmp_path / 'a', SMALL)['ade20k']
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    calls = []
    build(tmp_path / 'a', SMALL, lambda *counts: calls.append(counts))
    assert not calls
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}


def test_a_link_stays_and_its_folder_is_filled(tmp_path):
    (tmp_path / 'big disk').mkdir()
    (tmp_path / 'a').symlink_to('big disk')
    build(tmp_path / 'a', SMALL)
    assert (tmp_path / 'a').is_symlink() and (tmp_path / 'big disk' / MANIFEST).is_file()
    assert sorted(os.listdir(tmp_path)) == ['a', 'big disk']


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'holiday.jpg').write_bytes(b'dear')
    (tmp_path / 'file').write_text('')
    build(tmp_path / 'other', MiniData('ade20k', 1, 1, (48, 64)))
    before = contents(tmp_path)
    for name in ('photos', 'file', 'other'):
        with pytest.raises(MiniDataError, match='holds something else: name another'):
            build(tmp_path / name, SMALL)
    with pytest.raises(NotADirectoryError):
        build(tmp_path / 'file' / 'below' / 'it', SMALL)
    assert contents(tmp_path) == before


def test_interrupted_build_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / 'a', SMALL, stop)
    assert os.listdir(tmp_path) == []


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / 'a').mkdir()
    build(tmp_path / 'a', SMALL)
    assert (tmp_path / 'a' / MANIFEST).is_file()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(layout='voc'), "layout is 'voc', must be one of: ade20k, coco"),
        (dict(train=0), 'train is 0 pictures'),
        (dict(layout='imagenet', val=3), 'needs at least 10'),
        (dict(size=(8, 8)), 'size is (8, 8)'),
        (dict(seed=-1), 'seed is -1'),
    ],
)
def test_wrong_parameters_are_named(arguments, words):
    with pytest.raises(MiniDataError) as error:
        MiniData(**arguments)
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.slow
def test_tool_makes_refuses_and_says_where(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True
        )

    options = ['--train', 2, '--val', 1, '--size', 48, 64]
    done = run(tmp_path / 'a', *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f'ade20k: --data-root {tmp_path}/a/ADEChallengeData2016'

    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'x').write_text('')
    refused = run(tmp_path / 'b', *options)
    assert refused.returncode == 1 and refused.stdout == ''
    assert refused.stderr.startswith('error: ') and refused.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--layout', 'all', '--val', '3'], 'val is 3 pictures, layout all needs at least 10'),
        (['--layout', 'voc'], "layout is 'voc'"),
        (['--size', '8', '8'], 'size is (8, 8)'),
        (['--trian', '8'], '--trian'),
    ],
)
def test_tool_refuses_a_wrong_request_before_torch_is_imported(tmp_path, options, words):
    code = (
        'import runpy, sys\n'
        'try:\n'
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        'finally:\n'
        "    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    starter = f'import sys; sys.argv = {[str(TOOL), str(tmp_path / "a"), *options]!r}\n'
    done = subprocess.run([sys.executable, '-c', starter + code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith('error: ')
    assert words in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'a').exists()
