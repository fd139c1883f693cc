"""The demo: make the mini data set, train ClusTR on it, draw what it sees.

    python tools/demo_train.py

Ends with three lines: the mIoU, the path of a picture, the path of the checkpoint.
"""

import argparse
import os
import sys
from collections.abc import Sequence

# Before torch is imported. On maps this small two threads gain a fifth on two idle cores, and wait
# for each other where another program has one: of ClusTR-T a step of 0.24 s took 0.26 s there, on
# two threads 0.19 s, and 0.48 to 2.6 s there, as long as they spin.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# ruff: noqa: E402
import logging
import re
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.engine.config import load_config, set_data_root
from clustr_mm.engine.errors import explained, run_tool
from clustr_mm.engine.options import CfgOptions, Parser
from clustr_mm.engine.runner import ToolRunner
from clustr_mm.visualization import compare_segmentation, distinct_colors

CONFIG = os.path.join(
    os.path.dirname(os.path.abspath(__file__)),
    '../configs/mmseg/upernet_clustr_pvtb0_mini.py',
)
# Warnings that this run's user can do nothing about; the log file has them.
_USUAL = re.compile(
    'starts from random weights|backend is not initialized|prefix is not set|FileClient'
    r'|HardDiskBackend|[/\\]mm(cv|engine|seg)[/\\]'
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='data/mini/ade', help='folder of the mini data set')
    parser.add_argument('--train', type=int, default=800, metavar='N', help='training pictures')
    parser.add_argument('--val', type=int, default=60, metavar='N', help='validation pictures')
    parser.add_argument('--size', type=int, default=80, metavar='PIXELS', help='side of a picture')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder of what it writes')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='as train.py takes them',
    )
    return parser.parse_args(argv)


class QuietRunner(ToolRunner):
    """Our Runner with a short terminal: the log file has all that it says."""

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Builds mmengine's logger and lets warnings through to the terminal, if they are news."""
        logger = super().build_logger(*args, **kwargs)
        logging.captureWarnings(True)
        for handler in logger.handlers:
            logging.getLogger('py.warnings').addHandler(handler)
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(is_news)
        return logger


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log belongs on the terminal."""
    return record.levelno >= logging.WARNING and not _USUAL.search(record.getMessage())


class ProgressHook(Hook):
    """Shows how far a training is, and keeps the last validation's metrics."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Starts the bar."""
        self.task = self.progress.add_task('training', total=runner.max_iters, state='')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves the bar."""
        loss = f'loss {outputs["loss"].item():.2f}' if outputs else ''
        self.progress.update(self.task, completed=runner.iter + 1, state=loss)

    def before_val(self, runner: Runner) -> None:
        """Says why the bar stands still."""
        self.progress.update(self.task, state='validating')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keeps the metrics."""
        self.metrics = metrics or {}


def train(root: str, options: argparse.Namespace, progress: Progress) -> tuple[ToolRunner, float]:
    """Trains on the data set in a folder; gives the runner and the mIoU in percent."""
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        cfg = load_config(CONFIG)
        import mmseg.datasets  # noqa: F401 - prints what a user of OneDL would want to know
    set_data_root(cfg, root)
    cfg.optim_wrapper.optimizer.fused = True  # on a CPU since torch 2.4: a tenth of the time
    cfg.merge_from_dict(options.cfg_options)
    cfg.work_dir = options.work_dir
    with explained(cfg):
        runner = QuietRunner.from_cfg(cfg)
        hook = ProgressHook(progress)
        runner.register_hook(hook)
        runner.train()
    return runner, hook.metrics['mIoU']


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    request = MiniData('ade20k', options.train, options.val, (options.size, options.size))
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn('left  {task.fields[state]}'),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task('drawing scenes', total=None, state='')
        made = build(
            options.data,
            request,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
        progress.update(task, visible=False)
        runner, score = train(str(made['ade20k']), options, progress)

    classes = runner.val_dataloader.dataset.metainfo['classes']
    sheet = compare_segmentation(
        runner.model,
        islice(runner.val_dataloader, 1),
        classes,
        distinct_colors(len(classes)),  # ADE20K's own colours make bottle and grass one green
        title=f'ClusTR + UperNet on the mini data set, {runner.iter} iterations from scratch: '
        f'mIoU {score:.1f}',
    )
    picture = os.path.join(options.work_dir, 'demo.png')
    Image.fromarray(sheet).save(picture)
    print(f'mIoU: {score:.2f}')
    print(f'picture: {picture}')
    print(f'checkpoint: {os.path.join(options.work_dir, f"iter_{runner.iter}.pth")}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
