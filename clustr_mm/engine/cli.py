"""The command lines of train.py and test.py: the libraries' own scripts, with their meanings.

Every OpenMMLab package carries its ``tools/train.py`` and ``test.py``. The one of the config's
library is run: it reads its own options and changes the config as it always does. Ours are a few
options beside them, the Runner that it builds (runner.py), and one line for a mistake.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config

from clustr_mm.datasets.check import check_paths
from clustr_mm.engine import numerics, pictures, resuming, samples  # noqa: F401 - they register
from clustr_mm.engine.checkpoints import newest_checkpoint
from clustr_mm.engine.config import (
    check_keys,
    library_of,
    load_config,
    set_data_root,
    use_amp,
    use_init_from,
)
from clustr_mm.engine.errors import UserError, explained
from clustr_mm.engine.options import TRUST, CfgOptions, Parser, choose_device, reading_safely
from clustr_mm.engine.runner import ToolRunner
from clustr_mm.ops.memory import keep_memory

# The union of the libraries' options, for reading a command line before its library is known, and
# for --help. What an option means is the library's own affair.
_FLAG = dict(action='store_true')
_SHARED = {
    '--work-dir': dict(metavar='DIR', help='where logs and checkpoints go'),
    '--cfg-options': dict(
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='set config values, for example train_cfg.max_iters=100 model.backbone.with_cp=True',
    ),
    '--launcher': dict(choices=('none', 'pytorch', 'slurm', 'mpi'), help='what started this'),
    '--local_rank --local-rank': dict(type=int, help=argparse.SUPPRESS),
    '--amp': dict(_FLAG, help='mixed precision, on a GPU (test: mmpretrain)'),
    '--show': dict(_FLAG, help='show predictions in a window (train: mmpose)'),
    '--show-dir': dict(metavar='DIR', help='draw predictions here (train: mmpose)'),
    '--wait-time': dict(type=float, metavar='S', help='seconds that a window stays'),
    '--interval': dict(type=int, metavar='N', help='draw every N-th sample (mmpose, mmpretrain)'),
    '--no-pin-memory': dict(_FLAG, help='loaders do not pin memory (mmpretrain)'),
}
_TRAIN = {
    '--resume': dict(
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='go on from CKPT, or from the newest checkpoint in the work folder',
    ),
    '--auto-scale-lr': dict(
        _FLAG, help="scale the rate by this run's batch size over the config's"
    ),
    '--no-validate': dict(_FLAG, help='train without validation (mmpose, mmpretrain)'),
    '--no-persistent-workers': dict(_FLAG, help='end loader processes every epoch (mmpretrain)'),
}
_TEST = {
    '--out': dict(
        metavar='PATH',
        help='predictions: a .pkl (mmdet, mmpretrain), a folder of label maps (mmseg); mmpose: '
        'the metrics',
    ),
    '--dump': dict(metavar='PKL', help='predictions (mmpose)'),
    '--out-item': dict(choices=('metrics', 'pred'), help='what --out writes (mmpretrain)'),
    '--tta': dict(_FLAG, help='test-time augmentation (mmdet, mmseg, mmpretrain)'),
    '--badcase': dict(_FLAG, help='look at the worst samples (mmpose)'),
}
_OURS = {
    '--data-root': dict(metavar='DIR', help="the data set, in place of the config's"),
    '--device': dict(choices=('cpu', 'cuda'), help='by default a GPU where there is one'),
    '--trust-checkpoint': TRUST,
    '--debug': dict(_FLAG, help='show the traceback of an error'),
}
_OURS_TRAIN = {
    '--init-from': dict(metavar='CKPT', help="start the backbone from this checkpoint's weights"),
}


def train(arguments: Sequence[str] | None = None) -> Any:
    """Trains what train.py's arguments say; None takes those of the process.

    Returns:
        Runner: Its training done.

    Raises:
        UserError: If the user can mend what went wrong.
    """
    return _run('train', arguments)


def test(arguments: Sequence[str] | None = None) -> dict[str, float] | None:
    """Tests what test.py's arguments say, as ``train`` does.

    Returns:
        dict: The metrics by name; None where the config names a runner of its own.
    """
    return getattr(_run('test', arguments), 'metrics', None)


def _run(tool: str, arguments: Sequence[str] | None) -> Any:
    """Runs a library's own script with ours around it, and gives the runner that it built."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options, theirs = _read(tool, arguments)

    if options.debug:
        os.environ['CLUSTR_DEBUG'] = '1'
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        # Else, when torchrun is killed outright, this would train on, hold its GPU, and write into
        # the work folder of the run that takes its place.
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    device = choose_device(options.device)
    if device == 'cpu':
        keep_memory()  # a tenth of the time of images of 512 x 512
    cfg = load_config(options.config)
    library = library_of(cfg)
    theirs = _for_library(library, tool, options, theirs)
    with reading_safely(options.trust_checkpoint), explained(cfg):
        _apply(cfg, tool, options, device)
        check_keys(cfg, options.cfg_options)
        return _run_script(library, tool, cfg, options, theirs)


def _run_script(
    library: str, tool: str, cfg: Config, options: argparse.Namespace, arguments: Sequence[str]
) -> Any:
    """Runs a library's train.py or test.py, which reads our config and builds our Runner."""
    name, script = f"{library}'s {tool}.py", _load_script(library, tool)
    built: list[Any] = []

    def build(cfg: Config, make: Callable[[Config], Any] = ToolRunner.from_cfg) -> Any:
        if tool == 'train':
            if cfg.get('train_dataloader') is None or cfg.get('train_cfg') is None:
                raise UserError(
                    f'config {cfg.filename} has no train_dataloader or train_cfg to train with'
                )
            _settle_start(cfg, options)
        if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
            splits = ('train', 'val') if tool == 'train' else ('test',)
            check_paths(cfg, [f'{split}_dataloader' for split in splits])
        built.append(make(cfg))
        return built[0]

    # The names by which it reads its options and its config, and makes its runner.
    names: dict[str, Any] = vars(script)
    reader = dict(vars(argparse), ArgumentParser=lambda **_: Parser(prog=name))
    names['argparse'] = SimpleNamespace(**reader)
    names['Config'] = SimpleNamespace(fromfile=lambda *_, **__: cfg)
    names['Runner'] = SimpleNamespace(from_cfg=build)
    if (registry := names.get('RUNNERS')) is not None:
        names['RUNNERS'] = SimpleNamespace(build=lambda cfg: build(cfg, registry.build))
    own, sys.argv = sys.argv, [name, *arguments]
    try:
        script.main()
    except KeyboardInterrupt:
        hint = '--resume goes on from the newest checkpoint' if tool == 'train' else ''
        raise KeyboardInterrupt(hint) from None
    finally:
        sys.argv = own
    return built[0]


def _read(tool: str, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads a command line: all that was said, and what of it is for the library's script."""
    ours = {**_OURS, **(_OURS_TRAIN if tool == 'train' else {})}
    files = ('config',) if tool == 'train' else ('config', 'checkpoint')
    arguments = _close_resume(arguments)
    parser = Parser(description=f'{tool.capitalize()}s a model from an OpenMMLab config.')
    for name in files:
        parser.add_argument(name)
    shared = parser.add_argument_group("options of the config's library")
    for names, kind in {**_SHARED, **(_TRAIN if tool == 'train' else _TEST)}.items():
        shared.add_argument(*names.split(), **kind)  # type: ignore[arg-type]
    own = parser.add_argument_group('beside them, for every library')
    for name, kind in ours.items():
        own.add_argument(name, **kind)  # type: ignore[arg-type]
    options = parser.parse_args(arguments)
    just_ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, kind in ours.items():
        just_ours.add_argument(name, **kind)  # type: ignore[arg-type]
    return options, just_ours.parse_known_args(arguments)[1]


def _close_resume(arguments: list[str]) -> list[str]:
    """Keeps ``--resume CONFIG``, which is mmseg's flag and a config, from eating the config."""
    closed = list(arguments)
    for place, (word, following) in enumerate(zip(arguments, arguments[1:], strict=False)):
        if word == '--resume' and following.endswith('.py'):
            closed[place] = '--resume=auto'
    return closed


def _for_library(
    library: str, tool: str, options: argparse.Namespace, theirs: list[str]
) -> list[str]:
    """Takes from a script's command line what only mmseg's lacks, and we have for it."""
    if library != 'mmseg' or tool != 'train':
        return theirs
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ('--resume', '--auto-scale-lr'):
        reader.add_argument(name, **_TRAIN[name])  # type: ignore[arg-type]
    rest = reader.parse_known_args(theirs)[1]
    return [*rest, '--resume'] if options.resume else rest


def _apply(cfg: Config, tool: str, options: argparse.Namespace, device: str) -> None:
    """Does to a config what our own options say, before the script's."""
    if options.data_root is not None:
        set_data_root(cfg, options.data_root)
    if options.amp and tool == 'train':
        use_amp(cfg, device)
    if tool == 'test':
        if '://' not in options.checkpoint and not os.path.isfile(options.checkpoint):
            raise UserError(f'checkpoint {options.checkpoint} does not exist; check the path')
        return
    if options.init_from is not None:
        use_init_from(cfg, options.init_from)
    said = {*(cfg.get('auto_scale_lr') or {}), *(key.split('.')[-1] for key in options.cfg_options)}
    if options.auto_scale_lr and 'base_batch_size' not in said:
        raise UserError(f'--auto-scale-lr: {options.config} has no auto_scale_lr.base_batch_size')


def _settle_start(cfg: Config, options: argparse.Namespace) -> None:
    """Says where a training starts: what mmseg's script lacks, and restarts by torchrun."""
    if options.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    if options.resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, options.resume
    if os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0' and _saved_since_launch(cfg):
        cfg.resume, cfg.load_from = True, None
    if options.init_from is not None and cfg.get('load_from') and not cfg.get('resume'):
        raise UserError(
            f'--init-from {options.init_from}: load_from={cfg.load_from} would take its place; set '
            'load_from=None'
        )


def _saved_since_launch(cfg: Config) -> bool:
    """Whether the work folder has a checkpoint of this launch, not just of an earlier run."""
    newest = newest_checkpoint(cfg.work_dir)
    if newest is None or not os.path.isfile(newest):
        return newest is not None
    try:  # Linux tells when torchrun was started, in ticks since the machine was
        with open(f'/proc/{os.getppid()}/stat') as file, open('/proc/stat') as machine:
            ticks = int(file.read().rpartition(')')[2].split()[19])
            boot = next(int(line.split()[1]) for line in machine if line.startswith('btime'))
    except (OSError, StopIteration):
        return True
    return os.stat(newest).st_mtime >= boot + ticks / os.sysconf('SC_CLK_TCK') - 1


def _load_script(library: str, tool: str) -> ModuleType:
    """Loads a library's own script as a module of its own."""
    package = importlib.util.find_spec(library)
    if package is None or package.origin is None:
        raise UserError(f'the config is for {library}, which is not installed; install it')
    path = os.path.join(os.path.dirname(package.origin), '.mim', 'tools', f'{tool}.py')
    if not os.path.isfile(path):
        raise UserError(
            f'{library} has no {path}, which its wheels carry; install it by pip or mim'
        )
    spec = importlib.util.spec_from_file_location(f'{library}_tools_{tool}', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
