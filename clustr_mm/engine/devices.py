"""Which device a run takes, and several processes where there is no GPU."""

import logging
import os

import torch
from mmengine.device import get_device
from mmengine.device import utils as mmengine_device
from mmengine.model import revert_sync_batchnorm
from torch import nn

from clustr_mm.engine.errors import UserError

# Rank, world size and local rank, as each launcher says them.
_LAUNCHER_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def choose_device(name: str | None) -> str:
    """Makes mmengine's runners take a device.

    Args:
        name: 'cpu', 'cuda', or None for what mmengine takes by itself.

    Returns:
        str: The device that runners take from now on.

    Raises:
        UserError: If CUDA is asked for where there is none.
    """
    if name == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: torch sees no GPU here; leave the option out or say cpu')
    if name is not None:
        # mmengine settles its device when it is imported, and asks nobody again.
        mmengine_device.DEVICE = name
    if name == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    return get_device()


def start_cpu_processes(launcher: str) -> None:
    """Joins this process to the gloo group of its launch.

    mmengine's own start always picks a CUDA device, so a run without one must come first; it
    then finds the group started and leaves it alone.

    Args:
        launcher: 'pytorch', 'slurm' or 'mpi'.

    Raises:
        UserError: If the launcher's variables are not in the environment.
    """
    if torch.distributed.is_initialized():
        return
    variables = _LAUNCHER_VARIABLES[launcher]
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher}: {", ".join(missing)} not in the environment; start the tool '
            f'with {"torchrun" if launcher == "pytorch" else launcher}, or leave --launcher out'
        )
    values = [os.environ[name] for name in variables]
    for name, value in zip(('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), values, strict=True):
        os.environ[name] = value
    if 'MASTER_ADDR' not in os.environ and int(os.environ.get('SLURM_NNODES', '1')) > 1:
        raise UserError(f'--launcher {launcher} over several machines needs MASTER_ADDR set')
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('gloo')


def replace_sync_batchnorm(model: nn.Module, logger: logging.Logger) -> nn.Module:
    """Puts plain BN in the place of SyncBN, which no CPU can run, and says so.

    Args:
        model: The model of one process among several.
        logger: Where to say it.

    Returns:
        nn.Module: The model without SyncBN.
    """
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        logger.warning(
            'SyncBN runs on GPUs only: on this CPU it is plain BN, and each process normalises by '
            'its own share of the batch.'
        )
    return revert_sync_batchnorm(model)
