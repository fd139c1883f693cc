"""What the documentation names exists: links, anchors, paths, commands with their options."""

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, LOOPS
from torch.utils.data import DataLoader

from clustr_mm.datasets.audit import audit
from clustr_mm.datasets.mini import MiniData, build

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / 'docs').glob('*.md')),
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
]
# What a reader makes, not the repository.
MADE = ('configs/mine/',)


class _Parsed(Exception):
    """A command line was understood."""


def _anchors(page: Path) -> set[str]:
    """The anchors that mkdocs gives to a page's headings."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\s-]', '', each).strip().lower().replace(' ', '-') for each in headings}


# In inline code and in blocks; a backslash goes on in the next line.
_PYTHON = r'(?:\w+=\S+ )*python tools/'
_SHELL = r'(?:\w+=\S+ )*tools/\w+\.sh '
_INLINE = re.compile(rf'`((?:{_PYTHON}|{_SHELL})[^`]+)`')
_BLOCK = re.compile(rf'^ {{4,}}((?:{_PYTHON}|{_SHELL})(?:.*\\\n)*.*)$', re.MULTILINE)


def _commands() -> Iterator[tuple[str, str]]:
    """Yields (page, command) for every call of a tool with arguments."""
    for page in PAGES:
        text = page.read_text()
        for command in _INLINE.findall(text) + _BLOCK.findall(text):
            yield page.name, ' '.join(command.replace('\\\n', ' ').split())


def _words(command: str, folder: Path) -> tuple[str, list[str]]:
    """The tool in Python that a command starts, directly or by a launcher, and its arguments."""
    words = shlex.split(re.sub(r'\[options of .*\]', '', command))
    while '=' in words[0]:  # what it sets in the environment
        del words[0]
    if words[0] != 'python':  # what the script would start is printed
        (folder / 'srun').write_text('#!/bin/sh\necho "$@"\n')
        (folder / 'srun').chmod(0o755)
        path = f'{folder}{os.pathsep}{os.environ["PATH"]}'
        env = {**os.environ, 'PATH': path, 'PYTHON': 'echo'}
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        words = shlex.split(done.stdout)
        if (processes := re.search(r'--nproc-per-node=(\S+)', done.stdout)) is not None:
            assert processes[1] == 'GPUS' or processes[1].isdigit()
    place = next(at for at, word in enumerate(words) if word.startswith('tools/'))
    return words[place], words[place + 1 :]


COMMANDS = sorted(set(_commands()))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize('page', sorted((ROOT / 'docs').glob('*.md')), ids=lambda page: page.name)
def test_anchors_begin_with_a_letter(page: Path) -> None:
    """Else mkdocs's script stops in a browser, and the page's tables stay without lines."""
    assert not [each for each in _anchors(page) if not each[:1].isalpha()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    pattern = (
        r'(?<![\w/.-])((?:configs|tools|clustr_mm|docs|requirements|tests)/[\w./-]*\w/?)(?![*{<\w])'
    )
    named = set(re.findall(pattern, page.read_text()))
    missing = [path for path in named if not (ROOT / path).exists() and not path.startswith(MADE)]
    assert not missing


@pytest.mark.parametrize(('page', 'command'), COMMANDS)
def test_commands_are_understood(
    page: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The tool's own parser reads the command; what it would do is left out."""
    tool, arguments = _words(command, tmp_path)
    spec = importlib.util.spec_from_file_location('documented_tool', ROOT / tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    main = getattr(module, 'main', None) or getattr(module, Path(tool).stem)
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        parse(self, args, namespace)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_only)
    try:
        main(arguments)
    except _Parsed:
        return
    except SystemExit as end:
        assert end.code == 0, capsys.readouterr().err
        return
    pytest.fail(f'{page}: {command} ran without reading its options')


def test_every_documented_tool_is_run_by_a_test() -> None:
    tools = {
        tool[0]
        for _, command in COMMANDS
        if (tool := re.search(r'tools/\S+\.py', command)) is not None
    }
    tests = [path.read_text() for path in (ROOT / 'tests').rglob('test_*.py')]
    unrun = {tool for tool in tools if not any(Path(tool).name in text for text in tests)}
    assert not unrun


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 20
    assert sum('.sh ' in command for _, command in COMMANDS) > 5
    assert sum('val_interval' in command for _, command in COMMANDS) == 1, 'of a third line'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_a_command_that_goes_on_says_so(page: Path) -> None:
    """Pasted without a backslash its first line would run by itself."""
    lines = page.read_text().splitlines()
    commands = [
        at for at, line in enumerate(lines) if re.match(rf' {{4}}({_PYTHON}|{_SHELL})', line)
    ]
    broken = []
    for at in commands:
        while lines[at].endswith('\\'):
            at += 1
        if at + 1 < len(lines) and re.match(r' {5,}\S| {4}-', lines[at + 1]):
            broken.append(lines[at])
    assert not broken


def test_our_loops_and_hooks_go_into_a_config_of_mmpretrains(tmp_path: Path) -> None:
    """train.md: the lines as written, below a base whose loop has no type and that has hooks."""
    mmpretrain = pytest.importorskip('mmpretrain')
    text = (ROOT / 'docs' / 'train.md').read_text()
    (lines,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    configs = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
    file = tmp_path / 'foreign.py'
    file.write_text(f"_base_ = '{configs}/resnet/resnet18_8xb32_in1k.py'\n{lines}")
    cfg = Config.fromfile(file)
    hooks = [HOOKS.build(hook) for hook in (cfg.default_hooks.checkpoint, *cfg.custom_hooks)]
    assert {type(hook).__module__.split('.')[0] for hook in hooks} == {'clustr_mm'}
    loader = DataLoader([0])
    loop = LOOPS.build(cfg.train_cfg, default_args=dict(runner=None, dataloader=loader))
    assert (type(loop).__name__, loop.max_epochs) == ('ResumableEpochLoop', 12)


def test_the_newcomers_path_to_three_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """own_data.md: the data cut as written, the config saved as written, and nothing wrong."""
    text = (ROOT / 'docs' / 'own_data.md').read_text()
    (config,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (cut,) = re.findall(r'and, in Python,\n\n((?:    .*\n)+)', text)
    monkeypatch.chdir(tmp_path)
    build(tmp_path / 'data' / 'mini' / 'coco', MiniData('coco', 24, 8, (96, 96), 0))
    exec(re.sub(r'^    ', '', cut, flags=re.MULTILINE), {})
    file = tmp_path / 'three_classes.py'
    file.write_text(config.replace('../mmdet', str(ROOT / 'configs' / 'mmdet')))
    cfg = Config.fromfile(file)
    assert not [line for line in audit(cfg, decode=True) if line.startswith('fault')]
    heads = cfg.model.roi_head
    assert heads.bbox_head.num_classes == heads.mask_head.num_classes == 3
