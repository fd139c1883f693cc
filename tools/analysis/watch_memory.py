"""Does a long run's memory stay flat? Trains, tests, and looks at the resident memory meanwhile.

    python tools/make_mini_data.py data/long --layout imagenet --train 1000 --val 2000 --size 32 32
    python tools/analysis/watch_memory.py configs/mmpretrain/clustr_t_mini.py \
        --data-root data/long --cfg-options train_cfg.max_epochs=4 train_dataloader.batch_size=2 \
        val_cfg=None val_dataloader=None val_evaluator=None default_hooks.checkpoint.save_best=None

are 2,000 steps and 2,000 images. Prints the resident memory of the process, in MiB, at eleven
points of the training and of testing its last checkpoint (one image a step), and how far the
highest after the first --settle steps is above that at them. The exit status is 1 if that is more
than --limit. Data is loaded in this process, so that its memory is seen as well.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from clustr_mm.engine import UserError, run_tool, test, train
from clustr_mm.engine.options import Parser

NOTES: dict[str, list[float]] = {'training': [], 'testing': []}  # MiB after each step


@HOOKS.register_module(force=True)  # a tool may be loaded twice, by tests
class ResidentMemoryHook(Hook):
    """Notes the resident memory after every step."""

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        NOTES['training'].append(resident())

    def after_test_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        NOTES['testing'].append(resident())


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def show(what: str, notes: Sequence[float], settle: int) -> float:
    """Prints eleven points and the growth after the settling, and returns that."""
    if len(notes) <= settle:
        raise UserError(f'{what} had {len(notes)} steps, and --settle is {settle}; take more data')
    places = [round(index * (len(notes) - 1) / 10) for index in range(11)]
    points = ' '.join(f'{place + 1}:{notes[place]:.0f}' for place in places)
    grown = max(notes[settle:]) / notes[settle] - 1
    print(f'{what}, step:MiB {points}; above step {settle}: {grown:+.1%}', flush=True)
    return grown


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--data-root', required=True, metavar='DIR')
    parser.add_argument('--work-dir', default='work_dirs/watch_memory', metavar='DIR')
    parser.add_argument('--settle', type=int, default=200, metavar='N')
    parser.add_argument('--limit', type=float, default=0.05, metavar='SHARE')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    common = ['--data-root', options.data_root, '--work-dir', options.work_dir, '--cfg-options']
    own = ['default_hooks.memory.type=ResidentMemoryHook', 'test_dataloader.batch_size=1']
    own += [f'{split}_dataloader.num_workers=0' for split in ('train', 'test')]
    train([options.config, *common, *own, *options.cfg_options])
    newest = (Path(options.work_dir) / 'last_checkpoint').read_text()
    test([options.config, newest, *common, *own, *options.cfg_options])
    grown = [show(what, notes, options.settle) for what, notes in NOTES.items()]
    if max(grown) > options.limit:
        raise UserError(f'memory grew by {max(grown):.1%}, and {options.limit:.0%} is allowed')


if __name__ == '__main__':
    sys.exit(run_tool(main))
