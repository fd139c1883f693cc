"""What depends on there being several processes, or on one that a launcher started."""

import time
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from ports import free_port
from small import NARROW
from torch import multiprocessing

from clustr_mm import ClusTR
from clustr_mm.engine.options import choose_device

PATIENCE = 300  # seconds, for a busy machine


def in_processes(target, count, *arguments):
    """Runs ``target(rank, *arguments)`` in processes that find themselves started by torchrun."""
    context = multiprocessing.spawn(
        _enter, (target, count, free_port(), arguments), count, join=False
    )
    end = time.monotonic() + PATIENCE
    while not context.join(1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail('the processes wait for each other')


def _enter(rank, target, count, port, arguments):
    import os

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    choose_device('cpu')
    target(rank, *arguments)


def train_with_a_fault(rank, folder):
    from test_numerics import NAN, make_runner

    values = [1, NAN if rank else 2, 3, 4]
    runner = make_runner(folder, values, launcher='pytorch', prefix=f'rank_{rank}_')
    runner.train()


@pytest.mark.slow
def test_a_fault_is_said_by_the_process_that_has_it(tmp_path, capfd):
    in_processes(train_with_a_fault, 2, str(tmp_path))
    lines = [line for line in ''.join(capfd.readouterr()).splitlines() if 'left out' in line]
    guilty = [line for line in lines if 'the loss' in line]
    others = [line for line in lines if 'a gradient' in line]
    assert len(guilty) == len(others) == 2, 'the data is seen twice'
    assert all('its batch: rank_1_image_1.png, rank_1_image_3.png' in line for line in guilty)
    assert not any('image' in line for line in others)


def train_toy(rank, folder, resume):
    from toy_run import make_config, run

    changes = {'optim_wrapper.accumulative_counts': 3}
    run(make_config(folder, False, launcher='pytorch', resume=resume, **changes))


@pytest.mark.long  # test_resuming.py has it without a launcher
def test_gradients_that_wait_are_kept_under_a_launcher(tmp_path, step=4):
    from test_resuming import assert_same, stop_after

    whole = tmp_path / 'whole'
    in_processes(train_toy, 1, str(whole), False)
    left = stop_after(whole, step, tmp_path)
    in_processes(train_toy, 1, str(left), True)
    assert_same(Path(whole, 'iter_12.pth'), Path(left, 'iter_12.pth'))


@MODELS.register_module()
class ClusteredRows(BaseModel):
    """A small ClusTR on images that rows of three numbers colour."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ClusTR({**NARROW, 'depths': (1, 1, 1, 1)})
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.register_buffer('noise', noise)

    def forward(self, inputs, index, mode='loss'):
        images = torch.stack(inputs)[:, :, None, None] * self.noise  # (B, 3, 32, 32)
        return dict(loss=self.backbone(images)[-1].square().mean())


def train_clusters(rank, folder):
    """Two steps, and the second again, gone on to from the first by the first process's word."""
    from test_resuming import stop_after
    from toy_run import make_config, run

    changes = {'model.type': 'ClusteredRows', 'train_cfg.max_iters': 2}
    run(make_config(Path(folder, 'whole'), False, launcher='pytorch', **changes))
    if rank == 0:
        stop_after(Path(folder, 'whole'), 1, Path(folder))
    torch.distributed.barrier()
    left = Path(folder, 'stopped_1')
    asked = rank == 0  # as after a restart of several machines
    runner = run(make_config(left, False, launcher='pytorch', resume=asked, **changes))
    (left / f'resumed_{rank}').write_text(f'{runner._resume} {runner._load_from}')


@pytest.mark.slow
def test_the_first_process_says_for_all_whether_a_run_goes_on(tmp_path):
    from test_resuming import assert_same

    in_processes(train_clusters, 2, str(tmp_path))
    whole, left = tmp_path / 'whole', tmp_path / 'stopped_1'
    for rank in range(2):
        assert (left / f'resumed_{rank}').read_text() == f'True {left / "iter_1.pth"}'
    assert_same(whole / 'iter_2.pth', left / 'iter_2.pth')
