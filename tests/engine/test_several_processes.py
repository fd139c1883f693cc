"""What depends on there being several processes, or on one that a launcher started."""

import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from clustr_mm.engine.devices import choose_device


def in_processes(target, count, *arguments):
    """Runs ``target(rank, *arguments)`` in processes that find themselves started by torchrun."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_enter, (target, count, port, arguments), nprocs=count)


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


@pytest.mark.parametrize('step', [4])
def test_gradients_that_wait_are_kept_under_a_launcher(tmp_path, step):
    from test_resuming import assert_same, stop_after

    whole = tmp_path / 'whole'
    in_processes(train_toy, 1, str(whole), False)
    left = stop_after(whole, step, tmp_path)
    in_processes(train_toy, 1, str(left), True)
    assert_same(Path(whole, 'iter_12.pth'), Path(left, 'iter_12.pth'))
