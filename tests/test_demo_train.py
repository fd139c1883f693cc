"""`make demo`: a readable terminal, a score, a picture, and nothing compiled by mmcv."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# The demo's set-up leaves these out.
ABSENT = ('mmcv.ops', 'mmcv._ext', 'mmdet', 'mmpose', 'mmpretrain', 'pycocotools', 'xtcocotools')
STARTER = f"""
import runpy, sys

sys.modules.update(dict.fromkeys({ABSENT!r}))  # None there: not to be imported, and not found
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
SMALL = [
    '--train', '6', '--val', '5', '--size', '64', '--cfg-options', 'train_cfg.max_iters=2',
    'train_cfg.val_interval=2', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
]  # fmt: skip


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    folder = tmp_path_factory.mktemp('demo')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '100'}
    options = ['--data', 'mini', '--work-dir', 'work', *SMALL]
    done = subprocess.run(
        [sys.executable, '-c', STARTER, str(ROOT / 'tools' / 'demo_train.py'), *options],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, folder


def test_demo_ends_with_score_picture_and_checkpoint_without_compiled_packages(demo):
    done, folder = demo
    score, picture, checkpoint = done.stdout.splitlines()[-3:]
    assert 0 <= float(score.removeprefix('mIoU: ')) <= 100
    with Image.open(folder / picture.removeprefix('picture: ')) as image:
        assert image.width > 800 and image.height > 800
    assert (folder / checkpoint.removeprefix('checkpoint: ')).is_file()


def test_terminal_is_short_and_the_log_file_is_not(demo):
    done, folder = demo
    assert 'training' in done.stderr
    assert 'Warning' not in done.stderr and 'WARNING' not in done.stderr, done.stderr
    (log,) = folder.glob('work/*/*.log')
    assert 'starts from random weights' in log.read_text()
    assert log.read_text().count('\n') > 100
