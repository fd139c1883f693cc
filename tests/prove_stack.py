"""Trains each task's mini config for two steps and tests it, on the stack that runs this file.

    python tests/prove_stack.py

Needs no test library: it is what `make test-upstream` runs beside OpenMMLab's own releases.
"""

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from clustr_mm.datasets.mini.mini import MiniData, build

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpose', 'mmpretrain')
COMMON = [
    'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0',
]  # fmt: skip
EPOCH = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
TASKS = {
    'ade20k': (
        'mmseg/upernet_clustr_pvtb0_mini.py',
        'iter_2.pth',
        ['train_cfg.max_iters=2', 'train_cfg.val_interval=2'],
    ),
    'coco': ('mmdet/mask_rcnn_clustr_t_mini.py', 'epoch_1.pth', EPOCH),
    'coco_wholebody': ('mmpose/topdown_clustr_t_mini.py', 'epoch_1.pth', EPOCH),
    'imagenet': ('mmpretrain/clustr_t_mini.py', 'epoch_1.pth', EPOCH),
}  # fmt: skip


def run(*command: object) -> None:
    """Runs a tool; its words are shown only if it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f'{done.stdout[-4000:]}\nfailed: {" ".join(map(str, command))}')


def main() -> None:
    """Runs all four."""
    installed = {each.metadata['Name'].lower(): each.version for each in metadata.distributions()}
    print(', '.join(f'{name} {installed[name]}' for name in PACKAGES if name in installed))
    with tempfile.TemporaryDirectory() as folder:
        for layout, (leaf, checkpoint, options) in TASKS.items():
            size = (64, 64) if layout != 'coco_wholebody' else (128, 128)
            # Classes are folders: each of ten needs an image.
            count = 10 if layout == 'imagenet' else 4
            mini = MiniData(layout=layout, train=count, val=count, size=size)
            root = build(Path(folder, layout), mini)[layout]
            config, work = f'configs/{leaf}', Path(folder, 'work', layout)
            places = ['--data-root', root, '--work-dir', work, '--device', 'cpu']
            options = ['--cfg-options', *COMMON, *options]
            run('tools/train.py', config, *places, *options)
            run('tools/test.py', config, work / checkpoint, *places, *options)
            print(f'{config}: trained and tested')


if __name__ == '__main__':
    main()
