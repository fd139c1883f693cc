"""What the documentation names exists: links, anchors, paths, commands with their options."""

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config

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


def _words(command: str) -> tuple[str, list[str]]:
    """The tool in Python that a command starts, directly or by a launcher, and its arguments."""
    words = shlex.split(re.sub(r'\[options of .*\]', '', command))
    while '=' in words[0]:  # what it sets in the environment
        del words[0]
    if words[0] == 'python':
        return words[1], words[2:]
    tool, *arguments = words
    launcher, job = Path(tool).stem.split('_')
    if launcher == 'slurm':
        del arguments[:2]  # PARTITION JOB_NAME
    else:
        processes = arguments.pop(1 if job == 'train' else 2)
        assert processes == 'GPUS' or processes.isdigit()
    return f'tools/{job}.py', arguments


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
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The tool's own parser reads the command; what it would do is left out."""
    tool, arguments = _words(command)
    spec = importlib.util.spec_from_file_location('documented_tool', ROOT / tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
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


def test_every_documented_tool_is_run_somewhere() -> None:
    rows = re.findall(r'^\| (.*) \| (.*) \|$', (ROOT / 'docs' / 'commands.md').read_text(), re.M)
    run_by = {tool: by for tools, by in rows for tool in re.findall(r'`(tools/[^`]+)`', tools)}
    named = {
        tool for _, command in COMMANDS for tool in re.findall(r'tools/\S+\.(?:py|sh)', command)
    }
    assert not named - set(run_by)
    for tool, by in run_by.items():
        assert (ROOT / tool).exists()
        tests = re.findall(r'`(tests/[^`]+)`', by)
        assert tests or '2026' in by
        for test in tests:
            assert Path(tool).name in (ROOT / test).read_text(), f'{test} does not run {tool}'


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
