"""The demo: make the mini data set, train ClusTR on it, test it, draw what it sees.

    python tools/demo_train.py

Ends with three lines: the mIoU, the path of a picture, the path of the checkpoint.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import islice

from PIL import Image

from clustr_mm.engine import run_tool, test, train
from clustr_mm.engine.config import load_config, set_data_root
from clustr_mm.engine.options import CfgOptions, Parser
from clustr_mm.engine.runner import ToolRunner

CONFIG = os.path.join(
    os.path.dirname(os.path.abspath(__file__)),
    '../configs/mmseg/upernet_clustr_t_mini.py',
)
ROWS = 5


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='data/mini/ade', help='folder of the mini data set')
    parser.add_argument('--train', type=int, default=1200, metavar='N', help='training pictures')
    parser.add_argument('--val', type=int, default=60, metavar='N', help='validation pictures')
    parser.add_argument('--size', type=int, default=96, metavar='PIXELS', help='side of a picture')
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


def validate_untrained(options: argparse.Namespace, root: str) -> float:
    """Gives the mIoU, in percent, of the model as it is before its first step."""
    cfg = load_config(CONFIG)
    set_data_root(cfg, root)
    cfg.merge_from_dict(options.cfg_options)
    cfg.work_dir = options.work_dir
    cfg.default_hooks.checkpoint = None  # it would keep this as the best
    runner = ToolRunner.from_cfg(cfg)
    runner.model.init_weights()
    return runner.val()['mIoU']


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    from clustr_mm.datasets.mini.mini import MiniData, build
    from clustr_mm.visualization import compare_segmentation, distinct_colors

    size = (options.size, options.size)
    mini = MiniData(layout='ade20k', train=options.train, val=options.val, size=size)
    root = str(build(options.data, mini)['ade20k'])
    common = ['--data-root', root, '--work-dir', options.work_dir]
    if options.cfg_options:
        common += ['--cfg-options', *(f'{k}={v}' for k, v in options.cfg_options.items())]
    before = validate_untrained(options, root)
    runner = train([CONFIG, *common])
    checkpoint = os.path.join(options.work_dir, f'iter_{runner.iter}.pth')
    after = test([CONFIG, checkpoint, *common])

    classes = runner.val_dataloader.dataset.metainfo['classes']
    title = f'ClusTR-T + UperNet on the mini data set, {runner.iter} iterations from scratch'
    sheet = compare_segmentation(
        runner.model,
        islice(runner.val_dataloader, ROWS),
        classes,
        distinct_colors(len(classes)),  # ADE20K's own colours make bottle and grass one green
        title=f'{title}: mIoU {after["mIoU"]:.1f}',
    )
    picture = os.path.join(options.work_dir, 'demo.png')
    Image.fromarray(sheet).save(picture)
    print(f'\nmIoU: {after["mIoU"]:.2f} (untrained: {before:.2f})')
    print(f'picture: {picture}')
    print(f'checkpoint: {checkpoint}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
