import json

import pytest
from PIL import Image

from clustr_mm.visualization import plot_curves, read_run


def write_log(folder, lines):
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def work_dir(tmp_path):
    """A run by epochs of two iterations, killed in the third epoch and resumed after the first."""
    write_log(
        tmp_path / '20260101_000000',
        [
            dict(loss=3.0, lr=0.1, epoch=1, iter=1, step=1),
            dict(loss=2.0, lr=0.1, epoch=1, iter=2, step=2),
            dict(mIoU=10.0, time=0.1, step=1),
            dict(loss=9.0, lr=0.1, epoch=2, iter=3, step=3),
        ],
    )
    write_log(
        tmp_path / '20260101_000001',
        [
            dict(loss=1.0, lr=0.1, epoch=2, iter=3, step=3),
            dict(loss=0.5, lr=0.1, epoch=2, iter=4, step=4),
            dict(mIoU=20.0, time=0.1, step=2),
        ],
    )
    return tmp_path


def test_a_resumed_run_is_one_curve(work_dir):
    run = read_run(work_dir)
    assert run.loss == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]
    assert run.scores == {'mIoU': [(2, 10.0), (4, 20.0)]}


def test_curves_are_a_picture(work_dir, tmp_path):
    run = read_run(work_dir)
    plot_curves({'scratch': run, 'pretrained': run}, tmp_path / 'curves.png', title='both')
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.size == (900, 320)


def test_what_is_not_there_is_named(work_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        read_run(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='mIuO; there are: mIoU'):
        plot_curves({'one': read_run(work_dir)}, tmp_path / 'curves.png', ['mIuO'])
