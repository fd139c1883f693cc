"""What `pip install` gives people, and what git and the lock file hold."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# Asked for by packages of the lock, and left out of it on purpose: the lock's head says why.
LEFT_OUT = {'chumpy', 'opencv-contrib-python', 'opencv-python'}

MM_DISTRIBUTIONS = {
    prefix + name
    for prefix in ('', 'onedl-')
    for name in (
        'mmcv',
        'mmdet',
        'mmdetection',
        'mmengine',
        'mmpose',
        'mmpretrain',
        'mmseg',
        'mmsegmentation',
    )
} | {'mmcls', 'mmcv-full', 'mmcv-lite'}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` makes, built offline from a copy of the sources."""
    source = tmp_path_factory.mktemp('source')
    for folder in ('clustr_mm', 'configs', 'tools'):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns('__pycache__')
        )
    for file in (
        'LICENSE',
        'MANIFEST.in',
        'README.md',
        'model-index.yml',
        'pyproject.toml',
        'setup.py',
    ):
        shutil.copy(ROOT / file, source)
    # What an earlier build leaves must not find its way into the wheel.
    stale = source / 'build' / 'lib' / 'clustr_mm' / 'deleted_module.py'
    stale.parent.mkdir(parents=True)
    stale.touch()

    target = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index']
    command += ['--no-build-isolation', '--wheel-dir', str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    assert not (source / 'clustr_mm' / '.mim').exists(), 'the build left copies among the sources'
    return made


def _sources(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_the_wheel_carries_package_configs_and_tools(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if '.dist-info/' not in name}
    carried = _sources('configs') | _sources('tools') | {'model-index.yml'}  # for mim search
    carried = {f'clustr_mm/.mim/{name}' for name in carried}
    assert held == carried | _sources('clustr_mm')


def test_the_core_requires_no_mm_distribution(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith('.dist-info/METADATA'))
        fields = Parser().parsestr(file.read(name).decode())
    required = [Requirement(line) for line in fields.get_all('Requires-Dist', [])]
    core = [r for r in required if r.marker is None or r.marker.evaluate({'extra': ''})]
    names = {canonicalize_name(r.name) for r in core}
    assert 'torch' in names
    assert not names & MM_DISTRIBUTIONS
    assert all(r.specifier.contains('2.1.2') for r in core if r.name == 'torch'), (
        'the upstream stack has torch 2.1.2'
    )
    extra = {
        canonicalize_name(r.name)
        for r in required
        if r.marker is not None and r.marker.evaluate({'extra': 'mm'})
    }
    assert extra & MM_DISTRIBUTIONS


def test_the_wheel_works_without_the_sources(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / 'site')
    code = 'import clustr_mm, sys; sys.stdout.write(clustr_mm.__file__)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Also: the import prints nothing of its own.
    assert done.stdout == str(tmp_path / 'site' / 'clustr_mm' / '__init__.py')


def test_installing_it_beside_a_stack_changes_no_package(wheel: Path) -> None:
    """As `pip install .` where torch and OpenMMLab are: no other package needs to come or go."""
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--report=-', '--quiet']
    # With no index to fetch from, a requirement that is not met would end it.
    done = subprocess.run([*command, '--no-index', str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    changed = {each['metadata']['name'] for each in json.loads(done.stdout)['install']}
    assert changed <= {'clustr-mm'}


# The lists of versions that the set-up installs, by what it makes, and the extras of ours in each.
LOCKS = {
    'demo': (['lock_demo.txt'], []),
    'all': (['lock_demo.txt', 'lock.txt'], ['mm', 'export', 'timm', 'web', 'test', 'dev']),
}


def _locked(files: list[str]) -> dict[str, str]:
    lines = [
        line for file in files for line in (ROOT / 'requirements' / file).read_text().splitlines()
    ]
    pins = [line.split('==') for line in lines if line and not line.startswith('#')]
    assert len({name for name, _ in pins}) == len(pins), 'a name is pinned twice'
    return dict(pins)


@pytest.mark.parametrize('made', LOCKS)
def test_the_lock_is_complete_and_agrees_with_itself(made: str) -> None:
    """The lock is installed without asking what its packages need, so it must hold all of that."""
    files, ours = LOCKS[made]
    locked = _locked(files)
    wrong = []
    checked = 0
    for name, version in {**locked, 'clustr-mm': metadata.version('clustr-mm')}.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.split('+')[0] != version:
            continue  # An environment of the reader's own: its metadata is of another version.
        checked += 1
        extras = ['', *ours] if name == 'clustr-mm' else ['']
        for line in installed.requires or []:
            need = Requirement(line)
            needed = need.marker is None or any(need.marker.evaluate({'extra': e}) for e in extras)
            key = canonicalize_name(need.name)
            if not needed or key in LEFT_OUT | {'clustr-mm'}:
                continue
            if not need.specifier.contains(locked.get(key, ''), prereleases=True):
                wrong.append(f'{name} needs {need}, the lock has {locked.get(key, "none")}')
    assert not wrong
    assert checked > 1, 'nothing of the lock is installed here'


def test_pins_stand_in_the_lock_alone() -> None:
    for name in ('pyproject.toml', 'requirements/setup_env.sh', 'Makefile'):
        assert not re.search(r'[a-z]==\d', (ROOT / name).read_text()), f'{name} pins a version'


@pytest.mark.parametrize(
    ('path', 'ignored'),
    [
        ('clustr_mm/datasets/x.py', False),
        ('clustr_mm/data/x.py', False),
        ('configs/_base_/datasets/x.py', False),
        ('tests/data/x.png', False),
        ('tools/datasets/x.py', False),
        ('data/x.png', True),
        ('work_dirs/run/x.pth', True),
        ('.venv-of-mine/bin/python', True),  # git follows no link, which .venv may be
        ('clustr_mm/__pycache__/x.pyc', True),
    ],
)
def test_git_ignores_data_and_runs_but_no_sources(path: str, ignored: bool) -> None:
    if shutil.which('git') is None or not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    command = ['git', 'check-ignore', '--quiet', '--no-index', path]
    status = subprocess.run(command, cwd=ROOT).returncode
    assert status == (0 if ignored else 1)
